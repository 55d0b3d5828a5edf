"""The only wiring: a config becomes data, model, plan and trainer, each part handed in ready."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from finetune.config.loader import dump_config, load_config
from finetune.config.run import RunConfig
from finetune.data.prepare import DataFacts, OpenedData, PreparedData, open_data, prepare_data
from finetune.errors import CheckpointError, DataError, FinetuneError
from finetune.freezing.plan import Plan, make_plan
from finetune.freezing.report import plan_as_data
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.models.inventory import take_inventory
from finetune.models.preprocessing import Preprocessing, read_preprocessing
from finetune.optim.groups import build_optimizer, make_groups
from finetune.optim.schedules import make_schedule
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.tensorboard import TensorBoard
from finetune.tracking.tracker import Tracker, Trackers
from finetune.train.checkpoint import (
    Base,
    Checkpoints,
    find_fault,
    load_checkpoint,
    load_weights_delta,
)
from finetune.train.folder import RunFolder
from finetune.train.evaluation import evaluate
from finetune.train.loop import Splits, Trainer, steps_of_epoch
from finetune.train.precision import Precision
from finetune.train.progress import Progress
from finetune.train.tasks import Task, build_task

_HARMLESS = {
    "name",
    "data.workers",
    "inference",
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


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished or stopped run, read back from its folder."""

    config: RunConfig
    folder: RunFolder
    facts: DataFacts
    preprocessing: Preprocessing
    model: Network
    task: Task
    device: torch.device


def build_parts(config: RunConfig) -> Parts:
    """Open the data, build the model, resolve the plan.

    The order is one way: raw data gives facts (columns, classes), the model's description gives
    preprocessing facts (tokenizer, image size), both give batches, whose shapes give the model.

    Raises:
        FinetuneError: something in the config does not fit the data or the model.
    """
    with located(config):
        opened = open_data(config.data, config.task, seed=config.seed, trust=config.trust)
        data = _prepare(config, opened)
        device = pick_device(config.train.device)
        model, task = _model_and_task(config, data.facts, data.specs, device)
        return Parts(data, model, make_plan(config.freeze, take_inventory(model)), task, device)


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


def load_run(run_dir: str | Path, *, trust: frozenset[str] = frozenset()) -> TrainedRun:
    """Rebuild the network of a run with its best or last weights, in evaluation mode.

    Raises:
        CheckpointError: the folder holds no usable run.
        TrustError: its config imports code that `trust` does not name.
    """
    folder = RunFolder(Path(run_dir))
    if not (folder.path / "config.yaml").is_file():
        raise CheckpointError("no run here: there is no config.yaml", where=str(run_dir))
    config = load_config(folder.path / "config.yaml", trust=trust)
    with located(config):
        facts, specs = _read_facts(folder.read_json("data.json"))
        device = pick_device(config.train.device)
        model, task = _model_and_task(config, facts, specs, device)
        plan = make_plan(config.freeze, take_inventory(model))
        load_weights_delta(_chosen_checkpoint(folder), model, Base.of(model, plan.ever_trained))
        preprocessing = read_preprocessing(config.model)
    return TrainedRun(config, folder, facts, preprocessing, model.eval(), task, device)


def evaluate_run(run_dir: str | Path, split: str, *, trust: Sequence[str] = ()) -> dict[str, float]:
    """Return loss and metrics of a trained run over one part of its data.

    Args:
        run_dir: The run's folder.
        split: `train`, `validation` or `test`.
        trust: Packages whose code its config may import.

    Raises:
        CheckpointError: the folder holds no usable run.
        DataError: the run has no such part.
    """
    run = load_run(run_dir, trust=frozenset(trust))
    config = run.config
    with located(config):
        opened = open_data(config.data, config.task, seed=config.seed, trust=config.trust)
        data = _prepare(config, opened)
        samples = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if samples is None:
            raise DataError(f"this run has no {split} samples", where=str(run_dir))
        precision = Precision(config.train.precision, run.device)
        return evaluate(
            run.model,
            run.task,
            samples,
            precision=precision,
            batch_size=evaluation_batch_size(config),
        )


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


def _prepare(config: RunConfig, opened: OpenedData) -> PreparedData:
    return prepare_data(
        opened,
        config.data,
        read_preprocessing(config.model),
        seed=config.seed,
        trust=config.trust,
    )


def _model_and_task(
    config: RunConfig, facts: DataFacts, specs: Mapping[str, TensorSpec], device: torch.device
) -> tuple[Network, Task]:
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
    groups = make_groups(config.optimizer, plan.ever_trained)
    total = settings.steps or (settings.epochs or 1) * steps_of_epoch(len(data.train), settings)
    _refuse_no_steps(total, len(data.train), config)
    folder = RunFolder(folder.path, _documents(config, parts), is_fresh=fresh)
    trackers = [JsonLines(folder.metrics), TensorBoard(folder.tensorboard)]
    trainer = Trainer(
        model=parts.model,
        plan=plan,
        optimizer=build_optimizer(config.optimizer, groups, parts.model),
        progress=Progress(),
        task=parts.task,
        splits=Splits(data.train, data.validation, data.test),
        groups=groups,
        schedule=make_schedule(config.schedule, total),
        precision=Precision(settings.precision, device),
        tracker=Trackers([*trackers, *([tracker] if tracker else [])]),
        folder=folder,
        checkpoints=Checkpoints(folder.checkpoints, settings.checkpoint.keep_last),
        base=Base.of(parts.model, plan.ever_trained),
        settings=settings,
        seed=config.seed,
        total_steps=total,
        evaluation_batch=evaluation_batch_size(config),
        device=device,
        hparams=_flat(config.model_dump(mode="json", exclude_none=True, by_alias=True)),
        log_gradient_norms=config.task.log_gradient_norms,
    )
    if not fresh:
        _take_up(trainer)
    return trainer


def _take_up(trainer: Trainer) -> None:
    """Continue from the newest checkpoint that is whole, if there is one."""
    newest, damaged = trainer.checkpoints.newest_valid()
    for line in damaged:
        trainer.tracker.message(line)
    if newest is None:
        return
    trainer.progress, scaler = load_checkpoint(
        newest, trainer.model, trainer.optimizer, trainer.base
    )
    trainer.precision.load_state(scaler)


def _chosen_checkpoint(folder: RunFolder) -> Path:
    """Return the best checkpoint where the run kept one, else the newest that is whole."""
    checkpoints = Checkpoints(folder.checkpoints, keep_last=1)
    newest, _ = checkpoints.newest_valid()
    if newest is None:
        raise CheckpointError(
            "no whole checkpoint", where=str(folder.checkpoints), hint="train the run first"
        )
    progress = json.loads((newest / "progress.json").read_text(encoding="utf-8"))["progress"]
    if progress["best_step"] is None:
        return newest
    best = checkpoints.path_of(progress["best_step"])
    if (fault := find_fault(best)) is not None:
        raise CheckpointError(f"the best checkpoint is damaged: {fault}", where=str(best))
    return best


def _refuse_another_run(folder: RunFolder, config: RunConfig) -> None:
    """Raise where the folder holds a run of another config, or no run at all."""
    saved = folder.path / "config.yaml"
    if not saved.is_file():
        if folder.path.is_dir() and any(folder.path.iterdir()):
            raise CheckpointError(
                "is not empty and holds no run", where=str(folder.path), hint="choose another --run"
            )
        return
    old = _flat(yaml.safe_load(saved.read_text(encoding="utf-8")))
    new = _flat(yaml.safe_load(dump_config(config)))
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


def _refuse_no_steps(total: int, samples: int, config: RunConfig) -> None:
    if total < 1:
        raise DataError(
            f"{samples} samples make no whole step of {config.train.batch_size}",
            hint="leave out train.drop_last, or use a smaller train.batch_size",
            key=("train", "batch_size"),
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


def _read_facts(document: dict[str, Any]) -> tuple[DataFacts, dict[str, TensorSpec]]:
    specs = {
        name: TensorSpec(tuple(spec["shape"]), spec["dtype"])
        for name, spec in document.pop("specs").items()
    }
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in document.items()}
    return DataFacts(**lists), specs


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
