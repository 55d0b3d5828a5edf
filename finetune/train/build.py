"""Build the parts of a run from its config: data, network, plan, task. None knows another."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from finetune.config.freeze import FreezeConfig
from finetune.config.run import RunConfig
from finetune.config.train import TrainConfig
from finetune.data.loading.mixing import Mixing, mixing_of
from finetune.data.opening import DataFacts, Record
from finetune.data.prepare import PreparedData
from finetune.data.steps.learnt import num_positions
from finetune.errors import DataError, Faults, FinetuneError
from finetune.freezing.apply import refuse_inexact
from finetune.freezing.lints import Lint
from finetune.freezing.methods import written_out
from finetune.freezing.plan import Plan, make_plan
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.models.inventory import take_inventory
from finetune.redaction import causes_withheld
from finetune.tasks.build_task import build_task
from finetune.tasks.directions import Directions
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TrainingCounts
from finetune.tasks.whole_windows import refuse_cut_windows
from finetune.train.after.inference import refuse_layout
from finetune.train.average import refuse_coarse
from finetune.train.before.all_lints import all_lints
from finetune.train.before.every_part import try_parts
from finetune.train.before.first_look import refuse_missing
from finetune.train.before.phases import refuse_impossible
from finetune.train.built import Parts, place_of
from finetune.train.chosen_threshold import refuse_without_validation
from finetune.train.evaluation import rehearse
from finetune.train.exact_kernels import use_exact_kernels
from finetune.train.fitted_on_validation import refuse_uncalibrated
from finetune.train.outputs_wanted import classes_by_target, head_wanted, outputs_wanted
from finetune.train.precision import Precision
from finetune.train.ranks.rank_settings import device_of_rank, refuse_unshared, shared_settings
from finetune.train.ranks.shard_settings import built_by_ranks
from finetune.train.rules import with_main_metric, wrong_rules
from finetune.train.run_data import open_samples
from finetune.train.timeline import steps_of_epoch
from finetune.which_rank import ALONE, Ranks


def build_parts(
    config: RunConfig,
    record: Record | None = None,
    *,
    most: int | None = None,
    ranks: Ranks = ALONE,
) -> Parts:
    """Open the data, build the model, resolve the plan.

    The order is one way: raw data gives facts (columns, classes), the model's description gives
    preprocessing facts (tokenizer, image size), both give batches, whose shapes give the model.

    Args:
        config: The run config.
        record: The run's record of its data, if it has begun.
        most: Upper bound on the samples prepared per split, for a preview; None for all.
        ranks: Which process of the run this is.

    Raises:
        FinetuneError: something in the config does not fit the data or the model.
    """
    with located(config):
        device = pick_device(config.train.device, ranks)
        use_exact_kernels(device, wanted=config.train.deterministic)
        # Before any data is read: otherwise a layer from a package that is not trusted would show
        # as samples of unequal shapes.
        known = refuse_missing(config)
        data = open_samples(config, record, most, preprocessing=known)
        build = partial(build_network, **network_arguments(config, data.facts, data.specs))
        model, lines = built_by_ranks(build, config, device, ranks, data.order.count)
        place = place_of(model, device)
        task = build_own_task(config, data.facts, place)
        total = _total_steps(config, data.order.count)
        phases = phases_of(config, model)
        # The checks from here on do not depend on each other, so their faults are reported
        # together.
        faults = Faults()
        with faults.noted():
            plan = plan_of(config, model)
            refuse_coarse(plan, config.train)
        # Nothing is evaluated without validation samples, so no rule can watch a metric.
        directions = Directions({}) if data.validation is None else task.directions
        # Resolved here, once: `checkpoint: {best: auto}` depends on the metrics of the task.
        training = shared_settings(with_main_metric(config.train, directions), ranks)
        faults.add(wrong_rules(training, config.schedule, directions))
        with faults.noted():
            refuse_without_validation(task, data.validation)
        with faults.noted():
            refuse_uncalibrated(task, data.validation)
        with faults.noted():
            refuse_layout(config, model, data.specs)
        faults.add(_wrong_triggers(training, phases, data, directions, total))
        with faults.noted():
            refuse_cut_windows(task, config.train)
        with faults.noted():
            refuse_unshared(config, task, ranks, data.order.count)
        precision = Precision(config.train.precision, place)
        with faults.noted():
            mixing = _mixing(config, data, task)
            rehearse(model, task, data.train, precision=precision, mixing=mixing)
            # For a run itself this would make samples that it may never need.
            if most is not None:
                size = evaluation_batch_size(config)
                try_parts(model, task, data.parts, precision=precision, batch_size=size)
        faults.raise_if_any()
        return Parts(data, model, plan, task, device, training, total, mixing, tuple(lines))


def phases_of(config: RunConfig, model: Network) -> FreezeConfig | None:
    """Return the phases of a config, those of a method written out; None if nothing is frozen.

    Raises:
        FinetuneError: the method does not fit the model.
    """
    return written_out(config.freeze, config.optimizer, take_inventory(model))


def plan_of(config: RunConfig, model: Network) -> Plan:
    """Resolve the phases of a config over a model.

    Raises:
        FinetuneError: the phases do not fit the model. All faults are reported at once.
    """
    plan = make_plan(config.freeze, config.optimizer, take_inventory(model), seed=config.seed)
    faults = Faults()
    # A policy freezes different blocks over time: its phase with all of them frozen is checked.
    for number, phase in enumerate(plan.narrowest):
        with faults.noted():
            refuse_inexact(model, phase.frozen, key=("freeze", "phases", number))
    faults.raise_if_any()
    return plan


def build_model_and_task(
    config: RunConfig, facts: DataFacts, specs: Mapping[str, TensorSpec], device: torch.device
) -> tuple[Network, Task]:
    """Build the network before training, and its task, from facts and shapes of the data."""
    model = build_network(**network_arguments(config, facts, specs)).to(device)
    return model, build_own_task(config, facts, device)


def network_arguments(
    config: RunConfig, facts: DataFacts, specs: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """Return the arguments of `build_network`: all that the network before training depends on."""
    num_classes = len(facts.classes) if facts.classes is not None else None
    return {
        "config": config.model,
        "inputs": specs,
        "classes": num_classes,
        "categories": num_positions(facts.fitted),
        "head": head_wanted(config.task, num_classes),
        "outputs": outputs_wanted(config.task, facts),
        "seed": config.seed,
        "trust": config.trust,
    }


def with_task_in_place(config: RunConfig, parts: Parts, was: torch.device) -> Parts:
    """Return parts whose task is where the network now is, if it has moved from where it was."""
    if parts.place == was:
        return parts
    return replace(parts, task=build_own_task(config, parts.data.facts, parts.place))


def build_own_task(config: RunConfig, facts: DataFacts, device: torch.device) -> Task:
    """Build the task of a config from facts of the data."""
    counts = facts.counts and TrainingCounts(facts.sizes.get("train", 0), facts.counts)
    several = config.data.target
    return build_task(
        config.task,
        classes=facts.classes,
        trust=config.trust,
        device=device,
        counts=counts or None,
        outputs=several if isinstance(several, tuple) else (),
        by_target=classes_by_target(facts),
        is_calibrated=config.inference.calibrate is not None,
    )


def pick_device(wish: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device that a config names; `auto` is the fastest one of this machine.

    Each of several processes takes the GPU of its own number.

    Raises:
        FinetuneError: the machine has no such device.
    """
    if ranks.is_several:
        return device_of_rank(wish, ranks)
    # The order is that of `auto`, which takes the first device that is there.
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
    """Add file and line to every `FinetuneError` of the block that names a config key."""
    try:
        with causes_withheld():
            yield
    except FinetuneError as error:
        # The located error replaces the first one, so a traceback shows it once, with its own
        # cause.
        raise config.located(error) from error.__cause__


def evaluation_batch_size(config: RunConfig) -> int:
    """Return the number of samples in a forward pass without gradients."""
    return config.inference.batch_size or config.train.pass_size


def lints_of(config: RunConfig, parts: Parts) -> dict[str, tuple[Lint, ...]]:
    """Return all notes on a run, grouped by subject as in `all_lints`."""
    return all_lints(
        config,
        parts.model,
        parts.plan,
        parts.task,
        parts.data.parts,
        parts.data.facts,
        num_samples=parts.data.order.count,
        device=parts.place,
        total=parts.total_steps,
    )


def _mixing(config: RunConfig, data: PreparedData, task: Task) -> Mixing:
    """Return what the config mixes in every step.

    Raises:
        DataError: inputs, targets or losses do not suit it.
    """
    classes = None if data.facts.classes is None else len(data.facts.classes)
    return mixing_of(
        config.data.transforms or (),
        data.train,
        classes=classes,
        seed=config.seed,
        hard=task.hard_losses,
    )


def _total_steps(config: RunConfig, samples: int) -> int:
    """Return the optimizer steps of the run.

    Raises:
        DataError: an epoch is shorter than one step.
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
        steps_per_epoch=steps_of_epoch(data.order.count, training),
        total=total,
        directions=directions,
    )
