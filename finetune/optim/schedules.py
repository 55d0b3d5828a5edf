"""Schedules: factors on the rate, as pure functions of the share of the run that is done."""

import math
from collections.abc import Callable
from typing import assert_never

from finetune.config.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneCycleSchedule,
    Schedule,
    SlantedTriangularSchedule,
)

Factor = Callable[[int], float]
"""Step (0 being the first) to the factor on the rate."""


def make_schedule(config: Schedule, total: int) -> Factor:
    """Return the factor by step for a run of `total` steps. Later steps keep the last factor.

    Args:
        config: The schedule.
        total: Steps of the whole schedule, at least 1.
    """
    match config:
        case ConstantSchedule(warmup=warmup):
            return _warm(lambda progress: 1.0, warmup=warmup, total=total)
        case LinearSchedule(warmup=warmup, floor=floor):
            return _warm(lambda progress: 1 - (1 - floor) * progress, warmup=warmup, total=total)
        case CosineSchedule(warmup=warmup, floor=floor):
            return _warm(
                lambda progress: floor + (1 - floor) * _half_cosine(progress),
                warmup=warmup,
                total=total,
            )
        case OneCycleSchedule():
            return _one_cycle(config, total)
        case SlantedTriangularSchedule():
            return _slanted_triangle(config, total)
        case _:
            assert_never(config)


def _warm(fall: Callable[[float], float], *, warmup: float, total: int) -> Factor:
    """Rise linearly for `warmup` of the run, then follow `fall` over the rest.

        factor(t) = (t + 1) / w           t <  w
        factor(t) = fall((t - w) / (total - w))   t >= w,   w = round(warmup * total)

    `fall` is `1` (constant), `1 - (1 - floor) u` (linear) or
    `floor + (1 - floor) (1 + cos(pi u)) / 2` (cosine; Loshchilov and Hutter, "SGDR",
    arXiv 1608.03983, section 3, without the restarts).
    """
    rise = round(warmup * total)

    def factor(step: int) -> float:
        if step < rise:
            # Not `step / rise`: at rate 0 the first step would change nothing.
            return (step + 1) / rise
        # A warmup over the whole run leaves no step to fall.
        return fall(min(1.0, (step - rise) / max(1, total - rise)))

    return factor


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
