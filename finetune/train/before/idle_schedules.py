"""Notes on schedules of the rate that change nothing, or whose falls come after the end."""

from collections.abc import Iterator

from finetune.config.optim import CosineSchedule, Schedule, StepSchedule, Warmup
from finetune.config.run import RunConfig
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Plan
from finetune.optim.schedules import Cycle, milestones, warmup_steps
from finetune.train.epochs import Epochs
from finetune.train.spans import walk
from finetune.train.timeline import interval_of


def idle_schedules(config: RunConfig, plan: Plan, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield notes on schedules that take no effect, that of the run and those of single rates.

    They are about: a warmup of no step, or as long as its schedule, a schedule that no rate follows
    or that has one step, falls of the rate that come too late, and a floor as high as the peak.

    Args:
        config: The run config.
        plan: The phases.
        per_epoch: Optimizer steps of an epoch.
        total: Those of the run.
    """
    yield from _of_run(config, plan, per_epoch, total)
    yield from _of_single_rates(config, per_epoch, total)


def is_followed(plan: Plan) -> bool:
    """Tell whether any rate follows the schedule of the run: not all have one of their own."""
    rates = [rate for phase in plan.phases for rate in phase.rates.values()]
    return not rates or any(rate.schedule is None for rate in rates)


def _of_run(config: RunConfig, plan: Plan, per_epoch: int, total: int) -> Iterator[Lint]:
    schedule = config.schedule
    key: Key = ("schedule",)
    warmup = getattr(schedule, "warmup", 0.0)
    cycle = _longest_cycle(plan, per_epoch, total)
    yield from _warmup(schedule, cycle, key)
    if schedule.type == "constant" and not warmup:
        return
    if not is_followed(plan):
        yield Lint(
            key,
            f"schedule {schedule.type!r} has no effect: all rates have schedules of their own",
            "leave it out",
        )
    elif total == 1:
        yield Lint(key, f"schedule {schedule.type!r} has no effect on 1 step", "lengthen the run")
    else:
        yield from _late_falls(schedule, cycle, key)


def _longest_cycle(plan: Plan, per_epoch: int, total: int) -> Cycle:
    """Return the longest stretch that the schedule spans: the run, or a phase where it restarts."""
    epochs = Epochs((per_epoch,))
    spans = walk((phase.until for phase in plan.phases), epochs, total)
    cycles = [
        Cycle(span.began, span.ends, epochs) if phase.restarts_schedule else Cycle(0, total, epochs)
        for phase, span in zip(plan.phases, spans, strict=True)
    ]
    # What has no effect in the longest one has none in any.
    return max(cycles, key=lambda cycle: cycle.length)


def _of_single_rates(config: RunConfig, per_epoch: int, total: int) -> Iterator[Lint]:
    """Yield the notes on schedules that some parameters have for their own rate."""
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
    """Yield a note on a rate that cannot fall, on falls beyond the end, on too many restarts."""
    if getattr(schedule, "floor", 0.0) == 1:
        message = f"the rate never falls: the floor of schedule {schedule.type!r} is the peak rate"
        yield Lint((*key, "floor"), message, "a floor below 1")
        return
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
