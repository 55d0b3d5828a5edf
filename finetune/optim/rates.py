"""The rate of every group at every step: a pure function of the step and of the phase's span."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from finetune.config.optim import Schedule
from finetune.optim.groups import Group
from finetune.optim.schedules import Cycle, EpochEnds, Factor, fallen, make_schedule


@dataclass(frozen=True, slots=True)
class PeakRate:
    """The rate of a parameter in a phase, before its schedule."""

    lr: float
    schedule: Schedule | None = None
    """A schedule of its own, in place of the run's."""
    over: float = 1.0
    """Share of the run that its own schedule spans."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The run's schedule applied to the groups."""

    schedule: Schedule
    groups: tuple[Group, ...]

    def at(
        self,
        step: int,
        peaks: Mapping[str, PeakRate],
        cycle: tuple[int, int],
        total_steps: int,
        *,
        epochs: EpochEnds,
        falls: int = 0,
    ) -> list[float]:
        """Return the rate of each group for the step after `step` steps; 0 where it is frozen.

        Args:
            step: Optimizer steps done.
            peaks: Rate of each parameter that the present phase trains.
            cycle: First step and end of the run's schedule: those of the run, or of the present
                phase if the schedule restarts with it.
            total_steps: Steps of the run.
            epochs: Where the epochs of the run end. It must be hashable.
            falls: How often the run's schedule has found a plateau.
        """
        began, ends = cycle
        factor = _factor(self.schedule, Cycle(began, ends, epochs))(step - began)
        factor *= fallen(self.schedule, falls)
        # All names of a group have one rate: they are grouped by it, see `Plan.fates`.
        own = (peaks.get(group.names[0]) for group in self.groups)
        run = Cycle(0, total_steps, epochs)
        return [0.0 if peak is None else _rate(peak, step, factor, run) for peak in own]


def _rate(peak: PeakRate, step: int, factor: float, run: Cycle) -> float:
    """Return the rate at a step; a schedule of its own goes by the run, not by the phase."""
    if peak.schedule is not None:
        factor = _factor(peak.schedule, replace(run, ends=round(peak.over * run.ends)))(step)
    return peak.lr * factor


@lru_cache(maxsize=256)
def _factor(schedule: Schedule, cycle: Cycle) -> Factor:
    """Return the factor of a schedule by step, made once: it is needed in every step."""
    return make_schedule(schedule, cycle)
