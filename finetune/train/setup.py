"""The only wiring: a config becomes data, model, plan and trainer, each part handed in ready."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from finetune.activations.cache import ActivationCache
from finetune.activations.estimate import Use
from finetune.config.freeze import FreezeConfig
from finetune.config.loader import as_plain, dump_config
from finetune.config.run import RunConfig
from finetune.config.task import ImportLoss, ImportTask, Task as TaskConfig
from finetune.config.train import CheckpointConfig, TrainConfig
from finetune.data.contents import KnownFiles
from finetune.data.drawn import drawn
from finetune.data.opening import DataFacts, Record, open_data
from finetune.data.prepare import PreparedData, prepare_data
from finetune.data.tokens import TokenStore
from finetune.errors import DataError, Faults, FinetuneError
from finetune.freezing.apply import refuse_inexact
from finetune.freezing.lints import Lint
from finetune.freezing.methods import written_out
from finetune.freezing.origins import Sources
from finetune.freezing.plan import Plan, make_plan
from finetune.freezing.proof import fingerprints
from finetune.freezing.report import plan_as_data
from finetune.freezing.rows import RowSlices
from finetune.importing import code_of
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.models.inventory import take_inventory
from finetune.models.preprocessing import read_preprocessing
from finetune.optim.groups import build_optimizer, make_groups
from finetune.optim.rates import Rates
from finetune.redaction import causes_withheld, redacted
from finetune.runs.background import Worker
from finetune.runs.disk_space import Room
from finetune.runs.folder import RunFolder, saved_folder, usual_folder
from finetune.runs.kept import Checkpoints
from finetune.runs.lock import refuse_if_held
from finetune.runs.progress import Progress
from finetune.tasks.metrics import Directions
from finetune.tasks.tasks import Task, build_task
from finetune.tasks.whole_windows import refuse_cut_windows
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.tracker import Tracker, Trackers
from finetune.train.all_lints import all_lints
from finetune.train.built import Parts
from finetune.train.compatibility import Compatibility
from finetune.train.compiling import refuse_uncompilable
from finetune.train.delta import Base
from finetune.train.evaluation import rehearse
from finetune.train.first_look import refuse_missing
from finetune.train.guard import StepGuard
from finetune.train.loop import Splits, Trainer
from finetune.train.phases import refuse_impossible
from finetune.train.precision import Precision
from finetune.train.proving import Prover
from finetune.train.reporting import Reporter
from finetune.train.resuming import (
    compare_with_saved,
    flattened,
    take_up,
    without_known_origin,
)
from finetune.train.rules import with_main_metric, wrong_rules
from finetune.train.same_data import lines_on_going_on, record_to_go_on
from finetune.train.sizes import checkpoint_bytes, optimizer_state
from finetune.train.start_lines import facts_of, notes_of, on_place
from finetune.train.stopping import Stop
from finetune.train.telling import Telling
from finetune.train.timeline import Timeline, steps_of_epoch
from finetune.watchdog import Watchdog


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


def build_trainer(
    config: RunConfig,
    run_dir: str | Path | None = None,
    *,
    fresh: bool = False,
    resume: str | Path | None = None,
    data_changed: bool = False,
    tracker: Tracker | None = None,
) -> Trainer:
    """Build all that a run needs. Where its folder holds a checkpoint, take up from there.

    Nothing is written into the folder before `fit`.

    Args:
        config: From `load_config`.
        run_dir: The run's folder; `runs/<name>` if left out.
        fresh: Begin at step 0 whatever the folder holds; its contents go when `fit` begins.
        resume: Another run's folder: take up from its newest whole checkpoint instead, and leave
            it as it is.
        data_changed: Go on also where the data is not that which the run began with.
        tracker: Receives what is logged beside `metrics.jsonl`, TensorBoard and what `fit` says.

    Raises:
        FinetuneError: something in the config does not fit the data, the model or the run that
            the folder holds.
    """
    folder = RunFolder.of(Path(run_dir or usual_folder(config)), config)
    folder = replace(folder, is_fresh=fresh)
    with located(config):
        if resume is not None:
            folder = replace(folder, origin=saved_folder(Path(resume)))
        refuse_if_held(folder.path)
        folder.refuse_foreign()
        folder = without_known_origin(folder)
        notes = compare_with_saved(folder, config)
        if resume is not None and folder.origin is None:
            notes.append(f"goes on with the run that began from {resume} already")
        if config.train.compile:
            refuse_uncompilable(pick_device(config.train.device))
        record, unknown = record_to_go_on(folder, accepts_changes=data_changed)
        parts = build_parts(config, record)
        notes += unknown
        notes += lines_on_going_on(record, parts.data.changes, parts.data.identity)
        trainer = _wire(config, parts, folder, tracker)
        notes += notes_of(config, parts, lints_of(config, parts))
        goes_on = not fresh or folder.origin is not None
        checkpoint = take_up(trainer) if goes_on else None
        place = on_place(folder.path, trainer.progress.step, parts.total_steps, checkpoint)
        for line in (f"run: {place}", *facts_of(config, parts)):
            trainer.telling.message(redacted(line))
        for line in notes:
            trainer.reporter.message(line)
        return trainer


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


def _wire(config: RunConfig, parts: Parts, folder: RunFolder, tracker: Tracker | None) -> Trainer:
    settings, data, plan, device = parts.training, parts.data, parts.plan, parts.device
    groups = make_groups(plan.ever_trained, plan.fates, plan.undecayed)
    rows = RowSlices.of(parts.model, plan.ever_trained)
    base = Base.of(parts.model, plan)
    digest = data.identity.training_digest
    timeline = Timeline(
        plan=plan,
        settings=settings,
        seed=config.seed,
        num_samples=len(data.train),
        data=digest,
        rates=Rates(config.schedule, groups),
        progress=Progress(data=digest, epoch_steps=steps_of_epoch(len(data.train), settings)),
    )
    parameters = dict(parts.model.named_parameters()) | rows.slices
    folder = replace(folder, documents=_documents(config, parts, folder))
    precision = Precision(settings.precision, device)
    prover = Prover(
        parts.model,
        plan,
        folder,
        sources=Sources.of(parts.model, parts.model.weights_reports),
        as_built=base.digests,
        never_trained=base.never_trained,
        trained_as_built=fingerprints(parts.model, plan.ever_trained),
    )
    compatibility = Compatibility(
        parts.model,
        base,
        timeline,
        expected=optimizer_state(plan, config.optimizer, device),
        proven=prover.names,
        loss_scale=precision.state(),
    )
    # TensorBoard's writer is slow to load: only a run that trains waits for it.
    from finetune.tracking.tensorboard import TensorBoard

    telling = Telling()
    trackers = [JsonLines(folder.metrics), TensorBoard(folder.tensorboard), telling]
    reporter = Reporter(
        tracker=Trackers([*trackers, *([tracker] if tracker else [])]),
        timeline=timeline,
        groups=groups,
        log_every=settings.log_every,
        device=device,
        hparams=flattened(as_plain(config)),
    )
    return Trainer(
        model=parts.model,
        optimizer=build_optimizer(config.optimizer, groups, parameters),
        timeline=timeline,
        task=parts.task,
        splits=Splits(data.train, data.validation, data.test),
        rows=rows,
        precision=precision,
        reporter=reporter,
        folder=folder,
        telling=telling,
        checkpoints=_checkpoints(settings.checkpoint, plan, folder, compatibility),
        base=base,
        settings=settings,
        seed=config.seed,
        evaluation_batch=evaluation_batch_size(config),
        log_gradient_norms=config.task.log_gradient_norms,
        cache=ActivationCache(
            config.cache, parts.model, cache_use(config, parts, reporter.message)
        ),
        prover=prover,
        guard=StepGuard(parts.model, checks_gradients=settings.precision != "float16"),
        watchdog=_watchdog(config),
        stop=Stop(),
    )


def _watchdog(config: RunConfig) -> Watchdog:
    """Return what watches over the run: more patient than what watches over its loader."""
    timeout_s = config.train.hang_timeout_s
    return Watchdog(2 * timeout_s if timeout_s and config.data.workers else timeout_s)


def _checkpoints(
    settings: CheckpointConfig, plan: Plan, folder: RunFolder, compatibility: Compatibility
) -> Checkpoints:
    num_best = (settings.keep_best or 1) if settings.best is not None else 0
    num_best += any(phase.restores_best for phase in plan.phases)
    size = checkpoint_bytes(plan, compatibility.expected)
    return Checkpoints(
        folder.checkpoints,
        settings.keep_last,
        room=Room(size, settings.keep_last + num_best),
        worker=Worker(in_thread=settings.background),
        misfit=compatibility.misfit,
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


def _documents(config: RunConfig, parts: Parts, folder: RunFolder) -> dict[str, str]:
    facts = asdict(parts.data.facts) | {
        "specs": {name: asdict(spec) for name, spec in parts.data.specs.items()},
        "identity": parts.data.identity.as_document(),
    }
    return {
        "config.yaml": dump_config(config, folder.path),
        "plan.json": json.dumps(plan_as_data(parts.plan), indent=1) + "\n",
        "data.json": json.dumps(facts, indent=1) + "\n",
    }
