"""Where the phases of a run come from: a list that is known before step 0, or a policy.

The timeline asks one of the two, and so does not depend on which it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from finetune.freezing.plan import Phase, Plan
from finetune.freezing.policies.policy import Facts, Mask, Policy
from finetune.runs.progress import Progress
from finetune.train.epochs import Epochs
from finetune.train.spans import Span, walk


class PhaseSource(Protocol):
    """Gives the phases of a run, by its progress."""

    @property
    def saves_every_end(self) -> bool:
        """Whether the end of each phase is saved, as a point to go back to."""

    def begin(self, progress: Progress) -> None:
        """Decide on the first phase, if the run is new."""

    def phase(self, number: int, progress: Progress) -> Phase:
        """Return a phase that has begun."""

    def following(self, progress: Progress) -> tuple[Phase, ...]:
        """Return the phases that are known to come after the present one."""

    def may_go_on(self, progress: Progress) -> bool:
        """Tell whether a phase may come after the present one."""

    def can_change(self, progress: Progress) -> frozenset[str]:
        """Return the names that train in the present phase or may train in a later one."""

    def observe(self, progress: Progress, *, is_evaluation: bool) -> None:
        """Take note of a step, or of an evaluation; it may end the present phase."""

    def spans(self, progress: Progress, epochs: Epochs, total: int) -> Iterator[Span]:
        """Yield the spans of the present phase and of those known to come."""

    def is_over(self, progress: Progress, ends: int) -> bool:
        """Tell whether the present phase, which lasts to step `ends` at most, is over."""


@dataclass(frozen=True, slots=True)
class ListedPhases:
    """The phases of a plan, in order."""

    plan: Plan
    saves_every_end: bool = field(default=True, init=False)
    """Listed phases are few."""

    def begin(self, progress: Progress) -> None:
        """Do nothing: the first phase is known."""

    def phase(self, number: int, progress: Progress) -> Phase:
        """Return a phase by its number."""
        return self.plan.phases[number]

    def following(self, progress: Progress) -> tuple[Phase, ...]:
        """Return all later phases."""
        return self.plan.phases[progress.phase + 1 :]

    def may_go_on(self, progress: Progress) -> bool:
        """Tell whether the present phase is not the last one."""
        return progress.phase + 1 < len(self.plan.phases)

    def can_change(self, progress: Progress) -> frozenset[str]:
        """Return the names that train in the present phase or a later one."""
        return self.plan.trained_from(progress.phase)

    def observe(self, progress: Progress, *, is_evaluation: bool) -> None:
        """Do nothing: triggers read the progress."""

    def spans(self, progress: Progress, epochs: Epochs, total: int) -> Iterator[Span]:
        """Yield the spans of the present phase and of all later ones."""
        untils = (phase.until for phase in self.plan.phases[progress.phase :])
        return walk(untils, epochs, total, began=progress.phase_began)

    def is_over(self, progress: Progress, ends: int) -> bool:
        """Tell whether the trigger of the present phase has fired."""
        return progress.plateau.is_over or progress.step >= ends


@dataclass(frozen=True, slots=True)
class MadePhases:
    """The phases that a policy makes as training goes; the progress keeps their masks."""

    plan: Plan
    policy: Policy
    saves_every_end: bool = field(default=False, init=False)
    """A policy may make a phase every few steps."""
    _made: dict[tuple[int, Mask], Phase] = field(default_factory=dict, init=False, repr=False)
    """Phases by number and mask. The present one is asked for several times a step."""

    def begin(self, progress: Progress) -> None:
        """Ask the policy for the first mask. A resumed run has the masks of its progress."""
        if not progress.masks:
            progress.masks = [list(self.policy.first(progress.memory_of(self.policy.name)))]

    def phase(self, number: int, progress: Progress) -> Phase:
        """Return the phase of a mask that was decided on."""
        mask = tuple(progress.masks[number])
        if (number, mask) not in self._made:
            self._made[number, mask] = self.plan.made(number, mask)
        return self._made[number, mask]

    def following(self, progress: Progress) -> tuple[Phase, ...]:
        """Return none: no later mask is decided on."""
        return ()

    def may_go_on(self, progress: Progress) -> bool:
        """Return True: the policy may always decide on another mask."""
        return True

    def can_change(self, progress: Progress) -> frozenset[str]:
        """Return all names that may ever train."""
        return frozenset(self.plan.ever_trained)

    def observe(self, progress: Progress, *, is_evaluation: bool) -> None:
        """Report a step or an evaluation to the policy; keep the mask that it decides on."""
        # After a decision the evaluation of the same step must not lead to a second one.
        if progress.next_mask is not None:
            return
        metrics = progress.metrics if is_evaluation else None
        facts = Facts(progress.step, progress.phase_began, metrics)
        mask = self.policy.observe(facts, progress.memory_of(self.policy.name))
        progress.next_mask = None if mask is None else list(mask)

    def spans(self, progress: Progress, epochs: Epochs, total: int) -> Iterator[Span]:
        """Yield the span of the present phase."""
        began = progress.phase_began
        ends = self.policy.ends_by(began)
        latest = total if ends is None else min(ends, total)
        yield Span(began, latest, is_certain=ends is not None)

    def is_over(self, progress: Progress, ends: int) -> bool:
        """Tell whether the policy has decided on the next mask."""
        return progress.next_mask is not None


def phase_source(plan: Plan) -> PhaseSource:
    """Return the source of the phases of a plan."""
    return ListedPhases(plan) if plan.policy is None else MadePhases(plan, plan.policy)
