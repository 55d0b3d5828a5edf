"""A config becomes data, network, plan and task: parts that know nothing of each other."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from finetune.activations.estimate import Use
from finetune.config.freeze import FreezeConfig
from finetune.config.run import RunConfig
from finetune.config.task import ImportLoss, ImportTask, Task as TaskConfig
from finetune.config.train import TrainConfig
from finetune.data.contents import KnownFiles
from finetune.data.drawn import drawn
from finetune.data.opening import DataFacts, Record, open_data
from finetune.data.prepare import PreparedData, prepare_data
from finetune.data.tokens import TokenStore
from finetune.errors import DataError, Faults, FinetuneError
from finetune.freezing.apply import refuse_inexact
from finetune.freezing.lints import Lint
from finetune.freezing.methods import written_out
from finetune.freezing.plan import Plan, make_plan
from finetune.importing import code_of
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.models.inventory import take_inventory
from finetune.models.preprocessing import read_preprocessing
from finetune.redaction import causes_withheld
from finetune.tasks.metrics import Directions
from finetune.tasks.tasks import Task, build_task
from finetune.tasks.whole_windows import refuse_cut_windows
from finetune.train.all_lints import all_lints
from finetune.train.built import Parts
from finetune.train.evaluation import rehearse
from finetune.train.first_look import refuse_missing
from finetune.train.phases import refuse_impossible
from finetune.train.precision import Precision
from finetune.train.rules import with_main_metric, wrong_rules
from finetune.train.timeline import steps_of_epoch


def build_parts(
    config: RunConfig, record: Record | None = None, *, most: int | None = None
) -> Parts:
    """Open the data, build the model, resolve the plan.

    The order is one way: raw data gives facts (columns, classes), the model's description gives
    preprocessing facts (tokenizer, image size), both give batches, whose shapes give the model.

    Args:
        config: The run's.
        record: What the run has kept of its data, if it has begun.
        most: Samples of a part that are prepared, to look at them; None for all.

    Raises:
        FinetuneError: something in the config does not fit the data or the model.
    """
    with located(config):
        device = pick_device(config.train.device)
        refuse_missing(config)
        data = open_samples(config, record, most)
        model, task = build_model_and_task(config, data.facts, data.specs, device)
        total = _total_steps(config, data.facts.sizes["train"])
        phases = phases_of(config, model)
        faults = Faults()
        with faults.noted():
            plan = plan_of(config, model)
        directions = Directions({}) if data.validation is None else task.directions
        training = with_main_metric(config.train, directions)
        faults.add(wrong_rules(training, directions))
        faults.add(_wrong_triggers(training, phases, data, directions, total))
        with faults.noted():
            refuse_cut_windows(task, config.train)
        precision = Precision(config.train.precision, device)
        with faults.noted():
            rehearse(model, task, data.train, precision=precision)
        faults.raise_if_any()
        return Parts(data, model, plan, task, device, training, total)


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
    plan = make_plan(config.freeze, config.optimizer, take_inventory(model), seed=config.seed)
    faults = Faults()
    for number, phase in enumerate(plan.narrowest):
        with faults.noted():
            refuse_inexact(model, phase.frozen, key=("freeze", "phases", number))
    faults.raise_if_any()
    return plan


def open_samples(
    config: RunConfig, record: Record | None = None, most: int | None = None
) -> PreparedData:
    """Open the data of a config: raw data first, then what the model wants done to it.

    Args:
        config: The run's.
        record: What the run has kept of its data, if it has begun.
        most: Samples of a part that are prepared; None for all.
    """
    keeps = config.cache.use == "auto"
    files = KnownFiles(config.cache.disk_gb) if keeps else None
    preprocessing = read_preprocessing(config.model)
    opened = open_data(
        config.data,
        config.task,
        seed=config.seed,
        trust=config.trust,
        files=files,
        head=preprocessing.head,
        record=record,
    )
    prepared = prepare_data(
        opened if most is None else drawn(opened, most, config.seed),
        config.data,
        preprocessing,
        seed=config.seed,
        trust=config.trust,
        views=config.cache.views,
        batch_size=config.train.pass_size,
        hang_timeout_s=config.train.hang_timeout_s,
        tokens=TokenStore(config.cache.disk_gb) if keeps else None,
    )
    return replace(prepared, notes=(*prepared.notes, *(files.notes if files else ())))


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
        with causes_withheld():
            yield
    except FinetuneError as error:
        raise config.located(error) from error.__cause__


def evaluation_batch_size(config: RunConfig) -> int:
    """Return the samples of one forward pass without gradients."""
    return config.inference.batch_size or config.train.pass_size


def lints_of(config: RunConfig, parts: Parts) -> dict[str, tuple[Lint, ...]]:
    """Return all notes on what a config describes, by what they are about."""
    return all_lints(
        config,
        parts.model,
        parts.plan,
        parts.task,
        parts.data.train,
        num_samples=parts.data.facts.sizes["train"],
        device=parts.device,
        total=parts.total_steps,
    )


def cache_use(
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
    sizes["train"] = settings.pass_size
    return Use(
        splits={name: samples for name, samples in splits.items() if samples is not None},
        sizes=data.facts.sizes,
        batch_sizes=sizes,
        autocast=Precision(settings.precision, parts.device).autocast,
        facts={
            "precision": settings.precision,
            "device": str(parts.device),
            "compiled": str(settings.compile),
            **({"code": code_of(config.trust)} if config.trust else {}),
        },
        tell=tell,
        is_compiled=settings.compile,
        not_cached=None if parts.plan.policy is None else parts.plan.policy.not_cached,
        store_dtype=config.cache.store_dtype,
        reads_inputs=_reads_inputs(config.task),
    )


def _reads_inputs(task: TaskConfig) -> bool:
    """Tell whether losses are given whole batches: those of the user's own."""
    losses = task.losses or ()
    return isinstance(task, ImportTask) or any(isinstance(one, ImportLoss) for one in losses)


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
    training: TrainConfig,
    written: FreezeConfig | None,
    data: PreparedData,
    directions: Directions,
    total: int,
) -> list[FinetuneError]:
    """Return what is wrong with the triggers of the phases."""
    return refuse_impossible(
        written.phases if written is not None else (),
        steps_per_epoch=steps_of_epoch(data.facts.sizes["train"], training),
        total=total,
        directions=directions,
    )
