"""Notes on settings that are valid and change nothing: the run is too short for them."""

import math
from collections.abc import Iterator

from finetune.config.optim import (
    CosineSchedule,
    PlateauSchedule,
    Schedule,
    StepSchedule,
    Warmup,
)
from finetune.config.run import RunConfig
from finetune.config.train import Every
from finetune.config.triggers import AfterEpochs, AfterSteps, OnPlateau, Trigger
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan
from finetune.optim.schedules import Cycle, milestones, warmup_steps
from finetune.train.epochs import Epochs
from finetune.train.spans import walk
from finetune.train.timeline import interval_of, steps_of_epoch

_MOST_KEPT = 0.1
"""Largest share of the first weights in an average that needs no note."""


def without_effect(
    config: RunConfig, plan: Plan, *, num_samples: int, total: int, validates: bool
) -> tuple[Lint, ...]:
    """Return notes on settings that take no effect in this run.

    They are about: samples that no step sees, a warmup or schedule of less than a step, a fall of
    the rate that comes too late, intervals that are longer than the run, early stopping whose
    patience is longer than the run or shorter than that of a phase with the same metric, and
    triggers that never fire: the run is too short or has too few evaluations.

    Args:
        config: The run config.
        plan: The phases.
        num_samples: Number of training samples.
        total: Optimizer steps of the run.
        validates: Whether there are validation samples.
    """
    per_epoch = steps_of_epoch(num_samples, config.train)
    found = [
        *_unseen(config, num_samples, per_epoch, total),
        *_intervals(config, per_epoch, total, validates=validates),
        *_schedule(config, plan, per_epoch, total),
        *_own_schedules(config, per_epoch, total),
    ]
    found += [*_early_stopping(config, plan, per_epoch, total), *_average(config, total)]
    return tuple(found + list(_triggers(config, plan, per_epoch, total)))


def _unseen(config: RunConfig, num_samples: int, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield a note if the run is shorter than an epoch, so that samples are never seen."""
    if total < per_epoch:
        seen = min(num_samples, total * config.train.batch_size)
        yield Lint(
            ("train", "steps"),
            f"{num_samples - seen:,} of {num_samples:,} training samples are never seen: the run "
            f"is over after {total:,} of the {per_epoch:,} steps of an epoch",
            "train.epochs: 1 sees each once",
        )


def _intervals(config: RunConfig, per_epoch: int, total: int, *, validates: bool) -> Iterator[Lint]:
    """Yield notes on evaluations and checkpoints that are due only after the run is over."""
    settings = config.train
    told: dict[Key, tuple[Every, str]] = {
        ("train", "evaluate_every"): (
            settings.evaluate_every,
            "the validation samples are evaluated once, at its end, so the last weights are used",
        ),
        ("train", "checkpoint", "every"): (
            settings.checkpoint.every,
            "it is saved at its end only: after a kill it begins anew",
        ),
    }
    for key, (every, follows) in told.items():
        # A run of less than an epoch is told by `_unseen`: nobody has asked for this interval.
        if every == Every(epochs=1):
            continue
        if key[-1] == "evaluate_every" and not validates:
            yield Lint(
                key,
                f"{_name(key)} has no effect: there are no validation samples",
                "data.split: {validation: 0.1} sets some aside",
            )
        elif (interval := interval_of(every, per_epoch)) > total:
            yield Lint(
                key,
                f"{_name(key)} is longer than the run: it is due after step {interval:,}, and the "
                f"run is over after {total:,}; {follows}",
                f"{_name(key)}: {{steps: {max(1, total // 4)}}}, say",
            )


def _name(key: Key) -> str:
    """Return a key as a config writes it."""
    return ".".join(map(str, key))


def _schedule(config: RunConfig, plan: Plan, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield notes on a warmup or a schedule that changes no rate."""
    schedule = config.schedule
    key: Key = ("schedule",)
    warmup = getattr(schedule, "warmup", 0.0)
    cycle = _longest_cycle(plan, per_epoch, total)
    yield from _warmup(schedule, cycle, key)
    if schedule.type == "constant" and not warmup:
        return
    rates = [rate for phase in plan.phases for rate in phase.rates.values()]
    if rates and all(rate.schedule is not None for rate in rates):
        yield Lint(
            key,
            f"schedule {schedule.type!r} has no effect: all rates have schedules of their own",
            "leave it out",
        )
    elif total == 1:
        yield Lint(key, f"schedule {schedule.type!r} has no effect on 1 step", "lengthen the run")
    else:
        yield from _late_falls(schedule, cycle, key)
        yield from _rate_plateau(config, per_epoch, total)


def _longest_cycle(plan: Plan, per_epoch: int, total: int) -> Cycle:
    """Return the longest stretch that the schedule spans: the run, or a phase where it restarts."""
    epochs = Epochs((per_epoch,))
    spans = walk((phase.until for phase in plan.phases), epochs, total)
    cycles = [
        Cycle(span.began, span.ends, epochs) if phase.restarts_schedule else Cycle(0, total, epochs)
        for phase, span in zip(plan.phases, spans, strict=True)
    ]
    return max(cycles, key=lambda cycle: cycle.length)


def _own_schedules(config: RunConfig, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield the same notes on schedules that some parameters have for their own rate."""
    for number, phase in enumerate(getattr(config.freeze, "phases", ())):
        for name, rate in phase.lr.items():
            if rate.schedule is None:
                continue
            # It goes by the run, see `optim.rates`.
            cycle = Cycle(0, round(rate.over * total), Epochs((per_epoch,)))
            key: Key = ("freeze", "phases", number, "lr", name, "schedule")
            yield from _warmup(rate.schedule, cycle, key)
            yield from _late_falls(rate.schedule, cycle, key)


def _warmup(schedule: Schedule, cycle: Cycle, above: Key) -> Iterator[Lint]:
    """Yield a note on a warmup of no step, and on one that lasts as long as its schedule."""
    key: Key = (*above, "warmup")
    warmup, rise = getattr(schedule, "warmup", 0.0), warmup_steps(schedule, cycle)
    share = warmup.fraction if isinstance(warmup, Warmup) else warmup
    if share and not rise:
        yield Lint(
            key,
            f"a warmup of {share:g} of {cycle.length:,} steps is none",
            f"{1 / cycle.length:.3g} is one step",
        )
    if rise >= cycle.length > 1:
        yield Lint(
            key,
            f"the rate only rises: its warmup takes {rise:,} steps, and its schedule ends after "
            f"{cycle.length:,}",
            "a shorter warmup",
        )


def _late_falls(schedule: Schedule, cycle: Cycle, key: Key) -> Iterator[Lint]:
    """Yield a note on points of a schedule that lie beyond its end, and on too many restarts."""
    ends = f"its schedule ends after {cycle.length:,}"
    if isinstance(schedule, CosineSchedule):
        rest = cycle.length - warmup_steps(schedule, cycle)
        if schedule.restarts and rest <= schedule.restarts:
            message = (
                f"{schedule.restarts} restarts in {max(0, rest):,} steps: not every one has a step"
            )
            yield Lint((*key, "restarts"), message, "fewer restarts")
    if not isinstance(schedule, StepSchedule):
        return
    if schedule.every is not None:
        first = interval_of(schedule.every, cycle.steps_of(1))
        if first >= cycle.length:
            message = f"the rate never falls: it would after {first:,} steps, and {ends}"
            yield Lint((*key, "every"), message, "a smaller 'every', or a longer run")
    points = milestones(schedule, cycle)
    late = [point for point in points if point >= cycle.length]
    if late:
        which = (
            "the rate never falls"
            if late == points
            else f"{len(late)} of {len(points)} falls never come"
        )
        message = f"{which}: at step {late[0]:,} the rate would fall, and {ends}"
        yield Lint((*key, "at"), message, "earlier points, or a longer run")


def _rate_plateau(config: RunConfig, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield a note if the run ends before the rate can fall on a plateau."""
    schedule, stopping = config.schedule, config.train.early_stopping
    if not isinstance(schedule, PlateauSchedule):
        return
    key: Key = ("schedule", "patience")
    # A fall at the last step would change no step.
    count = _num_evaluations(config, per_epoch, 0, total - 1)
    if count <= schedule.patience:
        yield Lint(
            key,
            f"the rate never falls: the run has {_counted(count)} before its last step, and it "
            f"needs more than {schedule.patience}",
            "a smaller patience, or train.evaluate_every: {steps: ...}",
        )
    elif stopping is not None and stopping.metric == schedule.metric:
        is_sooner = stopping.patience <= schedule.patience
        if is_sooner and stopping.min_delta >= schedule.min_delta:
            yield Lint(
                key,
                f"where {schedule.metric} no longer improves, early stopping (patience "
                f"{stopping.patience}) ends the run before the rate falls (patience "
                f"{schedule.patience})",
                f"a patience of early stopping above {schedule.patience}",
            )


def _average(config: RunConfig, total: int) -> Iterator[Lint]:
    """Yield a note if the average keeps much of the weights that the run begins with."""
    average = config.train.average
    if average is None or (kept := average.decay**total) <= _MOST_KEPT:
        return
    yield Lint(
        ("train", "average", "decay"),
        f"after {total:,} steps the average still holds {kept:.0%} of the weights that the run "
        f"begins with: it is mostly over the last {1 / (1 - average.decay):,.0f} steps",
        f"a decay of {math.pow(0.01, 1 / total):.3g} would hold 1 %",
    )


def _early_stopping(config: RunConfig, plan: Plan, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield notes on early stopping that never fires, or that fires before a plateau."""
    rule, key = config.train.early_stopping, ("train", "early_stopping", "patience")
    if rule is None:
        return
    count = _num_evaluations(config, per_epoch, 0, total)
    # The first evaluation sets the value to beat: patience counts those after it.
    if count <= rule.patience:
        yield Lint(
            key,
            f"early stopping never takes effect: the run has {_counted(count)}, and it needs more "
            f"than {rule.patience}",
            "a smaller patience, or train.evaluate_every: {steps: ...}",
        )
    # In the last phase it is right that early stopping ends the run.
    for phase in plan.phases[:-1]:
        until = phase.until
        if not isinstance(until, OnPlateau) or until.plateau != rule.metric:
            continue
        if rule.patience <= until.patience and rule.min_delta >= until.min_delta:
            yield Lint(
                key,
                f"where {rule.metric} no longer improves in phase {phase.name!r}, early "
                f"stopping (patience {rule.patience}) ends the run before the plateau "
                f"(patience {until.patience}) ends the phase: no later phase begins",
                f"a patience of early stopping above {until.patience}",
            )
            return


def _triggers(config: RunConfig, plan: Plan, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield notes on triggers that the end of the run, or too few evaluations, never let fire."""
    spans = walk((phase.until for phase in plan.phases), Epochs((per_epoch,)), total)
    for number, (phase, span) in enumerate(zip(plan.phases, spans, strict=True)):
        key: Key = ("freeze", "phases", number, "until")
        due = _due(phase.until, span.began, per_epoch)
        if due is not None and due > total:
            limit = "at_most" if isinstance(phase.until, OnPlateau) else "until"
            yield Lint(
                key,
                f"{limit} of phase {phase.name!r} never takes effect: it is due after step "
                f"{due:,}, and the run is over after {total:,}",
                "lengthen train.epochs, or leave it out",
            )
        count = _num_evaluations(config, per_epoch, span.began, span.ends)
        yield from _plateaus(config, phase, key, count)
        # One at the end of the phase is of the weights that it has then.
        if phase.restores_best and not _num_evaluations(
            config, per_epoch, span.began, span.ends - 1
        ):
            yield Lint(
                (*key[:-1], "restore_best"),
                f"restore_best of phase {phase.name!r} never takes effect: no evaluation comes "
                "before its end",
                "a longer phase, or train.evaluate_every: {steps: ...}",
            )
        if not span.is_certain:
            return  # the later phases begin at unknown steps


def _due(until: Trigger | None, began: int, per_epoch: int) -> int | None:
    """Return the step at which a count of epochs or steps ends a phase; the run may be shorter."""
    match until:
        case AfterEpochs(epochs=epochs):
            return began + epochs * per_epoch
        case AfterSteps(steps=steps):
            return began + steps
        case OnPlateau(at_most=at_most):
            return _due(at_most, began, per_epoch)
    return None


def _plateaus(config: RunConfig, phase: Phase, key: Key, count: int) -> Iterator[Lint]:
    """Yield a note if a phase has too few evaluations for its plateau."""
    until = phase.until
    if isinstance(until, OnPlateau) and count <= until.patience:
        yield Lint(
            key,
            f"the plateau of phase {phase.name!r} never takes effect: at most {_counted(count)} "
            f"in it, and it needs more than {until.patience}",
            "a smaller patience, or train.evaluate_every: {steps: ...}",
        )


def _num_evaluations(config: RunConfig, per_epoch: int, began: int, ends: int) -> int:
    """Return the number of evaluations after step `began` and up to step `ends`."""
    interval = interval_of(config.train.evaluate_every, per_epoch)
    return ends // interval - began // interval


def _counted(count: int) -> str:
    return "1 evaluation" if count == 1 else f"{count} evaluations"
