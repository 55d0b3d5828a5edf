"""The rate of every group at every step: a pure function of the step and of the phase's span."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    _made: dict[tuple[int, int], tuple[EpochEnds, Factor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The factor that was asked for last, by its cycle, with the epochs that it was made for."""

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
        began, _ = cycle
        factor = self._run_factor(cycle, epochs)(step - began)
        factor *= fallen(self.schedule, falls)
        # All names of a group have one rate: they are grouped by it, see `Plan.fates`.
        own = (peaks.get(group.names[0]) for group in self.groups)
        run = Cycle(0, total_steps, epochs)
        return [0.0 if peak is None else _rate(peak, step, factor, run) for peak in own]

    def _run_factor(self, cycle: tuple[int, int], epochs: EpochEnds) -> Factor:
        """Return the factor of the run's schedule in a cycle, which is the same for many steps."""
        epochs_before, factor = self._made.get(cycle, (None, None))
        # By identity: to hash a schedule costs more than all else of a rate.
        if factor is None or epochs_before is not epochs:
            factor = make_schedule(self.schedule, Cycle(*cycle, epochs))
            self._made.clear()
            self._made[cycle] = epochs, factor
        return factor


def _rate(peak: PeakRate, step: int, factor: float, run: Cycle) -> float:
    """Return the rate at a step; a schedule of its own goes by the run, not by the phase."""
    if peak.schedule is not None:
        factor = _factor(peak.schedule, replace(run, ends=round(peak.over * run.ends)))(step)
    return peak.lr * factor


@lru_cache(maxsize=256)
def _factor(schedule: Schedule, cycle: Cycle) -> Factor:
    """Return the factor of a parameter's own schedule by step, made once."""
    return make_schedule(schedule, cycle)
