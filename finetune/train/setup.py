"""The only wiring: a config becomes data, model, plan and trainer, each part handed in ready."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.config.freeze import FreezeConfig
from finetune.config.loader import as_plain, dump_config, load_config
from finetune.config.run import RunConfig
from finetune.config.task import ImportTask
from finetune.data.prepare import DataFacts, PreparedData, open_data, prepare_data
from finetune.errors import CheckpointError, DataError, Faults, FinetuneError
from finetune.freezing.apply import refuse_inexact
from finetune.freezing.methods import written_out
from finetune.freezing.plan import Plan, make_plan
from finetune.freezing.report import plan_as_data
from finetune.freezing.rows import RowSlices
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.models.inventory import take_inventory
from finetune.models.preprocessing import read_preprocessing
from finetune.optim.groups import build_optimizer, make_groups
from finetune.optim.rates import Rates
from finetune.prefix.choose import Prefixes, Use
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.tensorboard import TensorBoard
from finetune.tracking.tracker import Tracker, Trackers
from finetune.train.checkpoint import (
    Base,
    Checkpoints,
    load_checkpoint,
)
from finetune.train.evaluation import rehearse
from finetune.train.folder import RunFolder
from finetune.train.loop import Splits, Trainer, steps_of_epoch
from finetune.train.phases import refuse_impossible, wrong_rules
from finetune.train.precision import Precision
from finetune.train.progress import Progress
from finetune.train.reporting import Reporter
from finetune.train.tasks import Task, build_task

_HARMLESS = {
    "name",
    "data.workers",
    "inference",
    "prefix.use",
    "prefix.memory_gb",
    "prefix.disk_gb",
    "train.epochs",
    "train.steps",
    "train.log_every",
    "train.checkpoint.keep_last",
}
"""Keys that a continued run may change: none of them alters a step that is done."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a config describes, built but not yet trained."""

    data: PreparedData
    model: Network
    plan: Plan
    task: Task
    device: torch.device
    total_steps: int
    """Optimizer steps of the whole run."""


def build_parts(config: RunConfig) -> Parts:
    """Open the data, build the model, resolve the plan.

    The order is one way: raw data gives facts (columns, classes), the model's description gives
    preprocessing facts (tokenizer, image size), both give batches, whose shapes give the model.

    Raises:
        FinetuneError: something in the config does not fit the data or the model.
    """
    with located(config):
        data = open_samples(config)
        device = pick_device(config.train.device)
        model, task = build_model_and_task(config, data.facts, data.specs, device)
        total = _total_steps(config, len(data.train))
        phases = phases_of(config, model)
        faults = Faults()
        with faults.noted():
            plan = plan_of(config, model)
        faults.add(_wrong_triggers(config, phases, data, total))
        precision = Precision(config.train.precision, device)
        with faults.noted():
            rehearse(model, task, data.train, precision=precision)
        faults.raise_if_any()
        return Parts(data, model, plan, task, device, total)


def phases_of(config: RunConfig, model: Network) -> FreezeConfig | None:
    """Return the phases of a config written out; None where nothing is ever frozen.

    Raises:
        FinetuneError: its method does not fit the model.
    """
    return written_out(config.freeze, config.optimizer, take_inventory(model))


def plan_of(config: RunConfig, model: Network) -> Plan:
    """Resolve the phases of a config over a model.

    Raises:
        FinetuneError: they do not fit the model. All faults are told at once.
    """
    plan = make_plan(phases_of(config, model), config.optimizer, take_inventory(model))
    faults = Faults()
    for number, phase in enumerate(plan.phases):
        with faults.noted():
            refuse_inexact(model, phase.frozen, key=("freeze", "phases", number))
    faults.raise_if_any()
    return plan


def build_trainer(
    config: RunConfig,
    run_dir: str | Path | None = None,
    *,
    fresh: bool = False,
    tracker: Tracker | None = None,
) -> Trainer:
    """Build all that a run needs. Where its folder holds a checkpoint, take up from there.

    Nothing is written before `fit`.

    Args:
        config: From `load_config`.
        run_dir: The run's folder; `runs/<name>` if left out.
        fresh: Begin at step 0 whatever the folder holds; its contents go when `fit` begins.
        tracker: Receives what is logged beside `metrics.jsonl` and TensorBoard.

    Raises:
        FinetuneError: something in the config does not fit the data, the model or the run that
            the folder holds.
    """
    folder = RunFolder(Path(run_dir or Path("runs") / config.run_name))
    with located(config):
        if not fresh:
            _refuse_another_run(folder, config)
        parts = build_parts(config)
        return _wire(config, parts, folder, tracker, fresh=fresh)


def pick_device(wish: str) -> torch.device:
    """Return the device wished for; `auto` is the fastest one here.

    Raises:
        FinetuneError: there is no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wish == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wish.partition(":")[0]]:
        raise FinetuneError(f"this machine has no {wish!r}", key=("train", "device"))
    return torch.device(wish)


@contextmanager
def located(config: RunConfig) -> Iterator[None]:
    """Give every error that names a config key the file and line where that key stands."""
    try:
        yield
    except FinetuneError as error:
        raise config.located(error) from error.__cause__


def evaluation_batch_size(config: RunConfig) -> int:
    """Return the samples of one forward pass without gradients."""
    return config.inference.batch_size or config.train.micro_batch or config.train.batch_size


def open_samples(config: RunConfig) -> PreparedData:
    """Open the data of a config: raw data first, then what the model wants done to it."""
    opened = open_data(config.data, config.task, seed=config.seed, trust=config.trust)
    return prepare_data(
        opened,
        config.data,
        read_preprocessing(config.model),
        seed=config.seed,
        trust=config.trust,
        views=config.prefix.views,
    )


def build_model_and_task(
    config: RunConfig, facts: DataFacts, specs: Mapping[str, TensorSpec], device: torch.device
) -> tuple[Network, Task]:
    """Build the untrained network and its task from facts and shapes of the data."""
    num_classes = len(facts.classes) if facts.classes is not None else None
    model = build_network(
        config.model, specs, classes=num_classes, seed=config.seed, trust=config.trust
    ).to(device)
    task = build_task(config.task, classes=facts.classes, trust=config.trust, device=device)
    return model, task


def _wire(
    config: RunConfig, parts: Parts, folder: RunFolder, tracker: Tracker | None, *, fresh: bool
) -> Trainer:
    settings, data, plan, device = config.train, parts.data, parts.plan, parts.device
    groups = make_groups(plan.ever_trained, [phase.rates for phase in plan.phases], plan.undecayed)
    rows = RowSlices.of(parts.model, plan.ever_trained)
    steps_per_epoch = steps_of_epoch(len(data.train), settings)
    parameters = dict(parts.model.named_parameters()) | rows.slices
    folder = RunFolder(folder.path, _documents(config, parts), is_fresh=fresh)
    trackers = [JsonLines(folder.metrics), TensorBoard(folder.tensorboard)]
    reporter = Reporter(
        tracker=Trackers([*trackers, *([tracker] if tracker else [])]),
        plan=plan,
        groups=groups,
        log_every=settings.log_every,
        steps_per_epoch=steps_per_epoch,
        total_steps=parts.total_steps,
        device=device,
        hparams=_flat(as_plain(config)),
    )
    trainer = Trainer(
        model=parts.model,
        plan=plan,
        optimizer=build_optimizer(config.optimizer, groups, parameters),
        progress=Progress(),
        task=parts.task,
        splits=Splits(data.train, data.validation, data.test),
        rows=rows,
        rates=Rates(config.schedule, groups, parts.total_steps),
        precision=Precision(settings.precision, device),
        reporter=reporter,
        folder=folder,
        checkpoints=Checkpoints(folder.checkpoints, settings.checkpoint.keep_last),
        base=Base.of(parts.model, plan),
        settings=settings,
        seed=config.seed,
        total_steps=parts.total_steps,
        steps_per_epoch=steps_per_epoch,
        evaluation_batch=evaluation_batch_size(config),
        log_gradient_norms=config.task.log_gradient_norms,
        prefixes=Prefixes(config.prefix, parts.model, prefix_use(config, parts, reporter.message)),
    )
    if not fresh:
        _take_up(trainer)
    return trainer


def prefix_use(
    config: RunConfig, parts: Parts, tell: Callable[[str], None] = lambda text: None
) -> Use:
    """Return how a run uses its network, for a store of the frozen prefix.

    Args:
        config: The run's.
        parts: Data and network.
        tell: Receives what is decided, a line each.
    """
    data, settings = parts.data, config.train
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    sizes = dict.fromkeys(splits, evaluation_batch_size(config))
    sizes["train"] = settings.micro_batch or settings.batch_size
    return Use(
        splits={name: samples for name, samples in splits.items() if samples is not None},
        batch_sizes=sizes,
        autocast=Precision(settings.precision, parts.device).autocast,
        facts={"precision": settings.precision, "device": str(parts.device)},
        tell=tell,
    )


def _take_up(trainer: Trainer) -> None:
    """Continue from the newest checkpoint that is whole, if there is one."""
    newest, damaged = trainer.checkpoints.newest_valid()
    for line in damaged:
        trainer.reporter.message(line)
    if newest is None:
        return
    trainer.progress, scaler = load_checkpoint(
        newest, trainer.model, trainer.optimizer, trainer.base
    )
    trainer.precision.load_state(scaler)


def _refuse_another_run(folder: RunFolder, config: RunConfig) -> None:
    """Raise where the folder holds a run of another config, or no run at all."""
    saved = folder.path / "config.yaml"
    if not saved.is_file():
        if folder.path.is_dir() and any(folder.path.iterdir()):
            raise CheckpointError(
                "is not empty and holds no run", where=str(folder.path), hint="choose another --run"
            )
        return
    if not Checkpoints(folder.checkpoints, keep_last=1).all():
        return
    old, new = _flat(as_plain(load_config(saved))), _flat(as_plain(config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    changed = [key for key in changed if not _is_harmless(key)]
    if changed:
        lines = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed]
        raise CheckpointError(
            "holds a run of another config:\n    " + "\n    ".join(lines),
            where=str(folder.path),
            hint="--fresh begins anew in this folder, --run DIR in another one",
        )


def _is_harmless(key: str) -> bool:
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in _HARMLESS)


def _total_steps(config: RunConfig, samples: int) -> int:
    """Return the optimizer steps of the run.

    Raises:
        DataError: there is not a single one.
    """
    settings = config.train
    total = settings.steps or (settings.epochs or 1) * steps_of_epoch(samples, settings)
    if steps_of_epoch(samples, settings) < 1:
        raise DataError(
            f"{samples} samples make no whole step of {settings.batch_size}",
            hint="leave out train.drop_last, or use a smaller train.batch_size",
            key=("train", "batch_size"),
        )
    return total


def _wrong_triggers(
    config: RunConfig, written: FreezeConfig | None, data: PreparedData, total: int
) -> list[FinetuneError]:
    """Return what is wrong with the triggers of the phases, and with metrics that rules watch."""
    metrics: frozenset[str] | None = None
    if data.validation is None:
        metrics = frozenset()
    elif not isinstance(config.task, ImportTask):
        metrics = frozenset(f"validation/{name}" for name in ("loss", *config.task.metrics))
    return wrong_rules(config.train, metrics) + refuse_impossible(
        written.phases if written is not None else (),
        steps_per_epoch=steps_of_epoch(len(data.train), config.train),
        total=total,
        metrics=metrics,
    )


def _documents(config: RunConfig, parts: Parts) -> dict[str, str]:
    facts = asdict(parts.data.facts) | {
        "specs": {name: asdict(spec) for name, spec in parts.data.specs.items()}
    }
    return {
        "config.yaml": dump_config(config),
        "plan.json": json.dumps(plan_as_data(parts.plan), indent=1) + "\n",
        "data.json": json.dumps(facts, indent=1) + "\n",
    }


def _flat(value: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return nested plain data as one level of dotted keys."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str | int | float | bool) else str(value)}
    flat: dict[str, str | int | float | bool] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
