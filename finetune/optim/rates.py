"""The rate of every group at every step: a pure function of the step and of where phases began."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from finetune.config.freeze import RateConfig
from finetune.config.optim import Schedule
from finetune.optim.groups import Group
from finetune.optim.schedules import Factor, make_schedule


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a phase lies in the run."""

    phase: int
    """Its number."""
    began: int
    """Its first step."""
    ends: int
    """Step at which it ends at the latest."""
    restarts: bool
    """Whether the schedule begins anew with it, and is over when it is."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The run's schedule applied to the groups."""

    schedule: Schedule
    groups: tuple[Group, ...]
    total_steps: int

    def at(self, step: int, stretch: Stretch) -> list[float]:
        """Return the rate of each group for the step after `step` steps; 0 where it is frozen."""
        if stretch.restarts:
            factor = self._factor(self.schedule, stretch.ends - stretch.began)(step - stretch.began)
        else:
            factor = self._factor(self.schedule, self.total_steps)(step)
        return [self._rate(group.rates[stretch.phase], step, factor) for group in self.groups]

    def _rate(self, rate: RateConfig | None, step: int, factor: float) -> float:
        if rate is None:
            return 0.0
        if rate.schedule is not None:
            factor = self._factor(rate.schedule, round(rate.over * self.total_steps))(step)
        return rate.lr * factor

    @staticmethod
    def _factor(schedule: Schedule, length: int) -> Factor:
        return _schedule(schedule, max(1, length))


@lru_cache(maxsize=256)
def _schedule(schedule: Schedule, length: int) -> Factor:
    """Make each schedule once: it is asked for at every step."""
    return make_schedule(schedule, length)


def trained_rates(groups: Sequence[Group], rates: Sequence[float], phase: int) -> dict[str, float]:
    """Return the rates of the groups that a phase trains, by the group's name."""
    return {
        group.name: rate
        for group, rate in zip(groups, rates, strict=True)
        if group.rates[phase] is not None
    }
