"""Schedules: factors on the rate, as pure functions of the step since the schedule began."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from finetune.config.optim import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    PolynomialSchedule,
    Schedule,
    SlantedTriangularSchedule,
    StepSchedule,
    Warmup,
)

Factor = Callable[[int], float]
"""Step (0 being the first) to the factor on the rate."""


class EpochEnds(Protocol):
    """Converts between epochs and steps of the run."""

    def after(self, began: int, epochs: int) -> int:
        """Return the step at which `epochs` epochs have passed since the step `began`."""

    def count(self, step: int) -> float:
        """Return how many epochs the first `step` steps are, as a fraction."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """The steps of the run that a schedule spans."""

    began: int
    ends: int
    epochs: EpochEnds

    @property
    def length(self) -> int:
        """Its steps. A phase may have none, and a schedule needs one."""
        return max(1, self.ends - self.began)

    def steps_of(self, epochs: int) -> int:
        """Return how many steps its first `epochs` epochs have."""
        return self.epochs.after(self.began, epochs) - self.began

    def epochs_between(self, first: int, last: int) -> float:
        """Return how many epochs lie between two of its steps, as a fraction."""
        return self.epochs.count(self.began + last) - self.epochs.count(self.began + first)


_Falling = (
    ConstantSchedule
    | PlateauSchedule
    | LinearSchedule
    | PolynomialSchedule
    | CosineSchedule
    | ExponentialSchedule
)
"""Schedules that begin after a warmup."""


def make_schedule(config: Schedule, cycle: Cycle) -> Factor:
    """Return the factor by step since the cycle began. Later steps keep the last factor.

    A plateau is no function of the step: here it only has its warmup, see `fallen`.
    """
    rise = warmup_steps(config, cycle)
    match config:
        case OneCycleSchedule():
            return _one_cycle(config, cycle.length)
        case SlantedTriangularSchedule():
            return _slanted_triangle(config, cycle.length)
        case StepSchedule():
            return _stepwise(config, cycle, rise)
        case _:
            return _warm(_fall(config, cycle, rise), rise)


def warmup_steps(config: Schedule, cycle: Cycle) -> int:
    """Return for how many steps the rate rises before the schedule itself begins; 0 without."""
    if isinstance(config, OneCycleSchedule | SlantedTriangularSchedule):
        return 0
    warmup = config.warmup
    if not isinstance(warmup, Warmup):
        return round(warmup * cycle.length)
    if warmup.steps is not None:
        return warmup.steps
    if warmup.epochs is not None:
        return cycle.steps_of(warmup.epochs)
    return round((warmup.fraction or 0.0) * cycle.length)


def fallen(config: Schedule, falls: int) -> float:
    """Return the factor on the rate after it has fallen `falls` times on a plateau."""
    if not isinstance(config, PlateauSchedule):
        return 1.0
    return max(config.floor, config.factor**falls)


def _warm(fall: Factor, rise: int) -> Factor:
    """Rise linearly for `rise` steps, then follow `fall`, which counts its steps from there.

    factor(t) = (t + 1) / w     t <  w
    factor(t) = fall(t - w)     t >= w
    """
    return lambda step: _risen(step, rise) if step < rise else fall(step - rise)


def _risen(step: int, rise: int) -> float:
    """Return the factor of a warmup of `rise` steps; 1 after it."""
    # Not `step / rise`: at rate 0 the first step would change nothing.
    return (step + 1) / rise if step < rise else 1.0


def _fall(config: _Falling, cycle: Cycle, rise: int) -> Factor:
    """Return the factor by step after a warmup of `rise` steps.

    With the share `u` that is done of these steps: `1` (constant), `1 - (1 - floor) u` (linear),
    `floor + (1 - floor) (1 - u)^power` (polynomial).
    """
    # A warmup over the whole run leaves no step to fall.
    rest = max(1, cycle.length - rise)
    match config:
        case ConstantSchedule() | PlateauSchedule():
            return lambda done: 1.0
        case LinearSchedule(floor=floor):
            return lambda done: 1 - (1 - floor) * min(1.0, done / rest)
        case PolynomialSchedule(floor=floor, power=power):
            return lambda done: floor + (1 - floor) * (1 - min(1.0, done / rest)) ** power
        case CosineSchedule():
            return _cosine(config, rest)
        case ExponentialSchedule():
            return _exponential(config, cycle, rise)
        case _:
            assert_never(config)


def _exponential(config: ExponentialSchedule, cycle: Cycle, rise: int) -> Factor:
    """Fall by `decay` over each `every`, smoothly, after a warmup of `rise` steps."""

    def factor(done: int) -> float:
        last = min(rise + done, cycle.length)
        if config.every.steps is not None:
            times = (last - rise) / config.every.steps
        else:
            times = cycle.epochs_between(rise, last) / (config.every.epochs or 1)
        return math.pow(config.decay, max(0.0, times))

    return factor


def _cosine(config: CosineSchedule, rest: int) -> Factor:
    """Fall along half cosines, one for each period, over `rest` steps.

        factor(u) = floor + (1 - floor) (1 + cos(pi u)) / 2

    with the share `u` of the period that is done. Source: Loshchilov and Hutter, "SGDR", arXiv
    1608.03983, equation 5; `growth` is its `T_mult`.
    """
    periods = config.restarts + 1
    lengths = [config.growth**number for number in range(periods)]
    # Whole steps, so that the first step of each period has the peak rate.
    bounds = [round(rest * sum(lengths[:number]) / sum(lengths)) for number in range(periods + 1)]

    def factor(done: int) -> float:
        # Several periods may begin at one step where the run is too short: the last one counts.
        number = min(bisect_right(bounds, done), periods) - 1
        began, ends = bounds[number], bounds[number + 1]
        progress = min(1.0, (done - began) / max(1, ends - began))
        return config.floor + (1 - config.floor) * _half_cosine(progress)

    return factor


def _stepwise(config: StepSchedule, cycle: Cycle, rise: int) -> Factor:
    """Multiply by `factor` at each point, during a warmup of `rise` steps as well.

    Points count from the start of the cycle, as those of `StepLR` and `MultiStepLR`.
    """
    points = _points(config, cycle)

    def factor(step: int) -> float:
        return _risen(step, rise) * config.factor ** points(min(step, cycle.length))

    return factor


def _points(config: StepSchedule, cycle: Cycle) -> Callable[[int], int]:
    """Return the function from a step to the number of points up to it."""
    if config.at is not None:
        at = milestones(config, cycle)
        return lambda step: bisect_right(at, step)
    every = config.every
    if every is None or every.epochs is None:
        distance = 1 if every is None else every.steps or 1
        return lambda step: step // distance
    num = every.epochs
    # By search: epochs before a change of the data may have had another length.
    return lambda step: bisect_right(
        range(1, step + 1), step, key=lambda number: cycle.steps_of(number * num)
    )


def milestones(config: StepSchedule, cycle: Cycle) -> list[int]:
    """Return the points of `at` in steps since the start of the cycle."""
    if config.at is None:
        return []
    return [*(config.at.steps or ()), *map(cycle.steps_of, config.at.epochs or ())]


def _one_cycle(config: OneCycleSchedule, total: int) -> Factor:
    """Rise along a half cosine from `1 / start_divisor` to 1, then fall along another.

    The end is `1 / (start_divisor * end_divisor)`. Source: Smith and Topin, "Super-Convergence",
    arXiv 1708.07120; half cosines in place of lines, as in fastai and `OneCycleLR`.
    """
    low = 1 / config.start_divisor
    lowest = low / config.end_divisor
    peak = max(1, round(config.rise * total))

    def factor(step: int) -> float:
        if step < peak:
            return 1 - (1 - low) * _half_cosine(step / peak)
        # The last step, number total - 1, has the lowest rate, as in `OneCycleLR`.
        progress = min(1.0, (step - peak) / max(1, total - 1 - peak))
        return lowest + (1 - lowest) * _half_cosine(progress)

    return factor


def _slanted_triangle(config: SlantedTriangularSchedule, total: int) -> Factor:
    """Rise steeply, fall slowly.

        cut = floor(total * cut_fraction)
        p   = t / cut                                          t <  cut
        p   = 1 - (t - cut) / (cut * (1 / cut_fraction - 1))   t >= cut
        factor(t) = (1 + p (ratio - 1)) / ratio

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", arXiv 1801.06146, eq. 3.
    """
    # Rounded down it is 0 in a short run, and the formula divides by it.
    cut = max(1, math.floor(total * config.cut_fraction))
    fall = cut * (1 / config.cut_fraction - 1)

    def factor(step: int) -> float:
        share = step / cut if step < cut else max(0.0, 1 - (step - cut) / fall)
        return (1 + share * (config.ratio - 1)) / config.ratio

    return factor


def _half_cosine(progress: float) -> float:
    """Return 1 at progress 0, falling to 0 at progress 1 along a half cosine."""
    return (1 + math.cos(math.pi * progress)) / 2
