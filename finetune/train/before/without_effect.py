"""Notes on settings that are valid and change nothing: the run is too short for them."""

import math
from collections.abc import Iterator

from finetune.config.optim import PlateauSchedule
from finetune.config.run import RunConfig
from finetune.config.train import Every
from finetune.config.triggers import AfterEpochs, AfterSteps, OnPlateau, Trigger
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan
from finetune.train.before.idle_schedules import idle_schedules, is_followed
from finetune.train.epochs import Epochs
from finetune.train.spans import walk
from finetune.train.timeline import interval_of, steps_of_epoch

_MOST_KEPT = 0.1
"""Largest share of the first weights in an average that needs no note."""


def without_effect(
    config: RunConfig, plan: Plan, *, num_samples: int, total: int, validates: bool
) -> tuple[Lint, ...]:
    """Return notes on settings that take no effect in this run.

    They are about: samples that no step sees, intervals that are longer than the run, schedules,
    early stopping whose patience is longer than the run or shorter than that of a phase with the
    same metric, and triggers that never fire: the run is too short or has too few evaluations.

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
        *_intervals(config, plan, per_epoch, total, validates=validates),
        *idle_schedules(config, plan, per_epoch, total),
    ]
    if total > 1 and is_followed(plan):
        found += _rate_plateau(config, per_epoch, total)
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


def _intervals(
    config: RunConfig, plan: Plan, per_epoch: int, total: int, *, validates: bool
) -> Iterator[Lint]:
    """Yield notes on evaluations and checkpoints that are due only after the run is over."""
    settings = config.train
    # A new best is saved at once, and so is the end of a phase.
    has_best = validates and settings.checkpoint.best is not None
    is_saved_before = len(plan.phases) > 1 or (
        has_best and interval_of(settings.evaluate_every, per_epoch) < total
    )
    told: dict[Key, tuple[Every, str]] = {
        ("train", "evaluate_every"): (
            settings.evaluate_every,
            "the validation samples are evaluated once, at its end, so the last weights are used",
        ),
        ("train", "checkpoint", "every"): (
            settings.checkpoint.every,
            "before its end it is saved where a phase ends or an evaluation is the best so far"
            if is_saved_before
            else "it is saved at its end only: after a kill it begins anew",
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
