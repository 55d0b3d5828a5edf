"""Protocol of policies: a policy sees every step and evaluation, and answers with the next mask.

A mask of a policy is the tuple of blocks that train, by depth. Parameters outside `blocks` are in
the same state all the time. A policy keeps nothing between two calls: all that it must remember
is plain data in `memory`, which the run saves in `progress.json`. So resuming a run, or going back
to a checkpoint, needs no code in the policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Mask = tuple[int, ...]
"""The blocks that train, by depth, in rising order."""
Memory = dict[str, Any]
"""Memory of a policy, as plain JSON data."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy sees, after each step and once more after each evaluation."""

    step: int
    """Optimizer steps done."""
    began: int
    """Step at which the present mask began."""
    metrics: Mapping[str, float] | None = None
    """Figures of the evaluation by tag; None after a step."""


class Policy(Protocol):
    """A method that decides masks while training goes on."""

    @property
    def name(self) -> str:
        """Name of the method, as in the config."""

    @property
    def blocks(self) -> Mapping[int, frozenset[str]]:
        """The parameters that the policy may freeze, by the depth of their block."""

    @property
    def says(self) -> str:
        """The line that `plan` shows: which blocks may train, how they are chosen, and when."""

    @property
    def not_cached(self) -> str | None:
        """Why the activation cache is off with this policy; None if it may cache."""

    def first(self, memory: Memory) -> Mask:
        """Return the mask that the run begins with."""

    def observe(self, facts: Facts, memory: Memory) -> Mask | None:
        """Return the next mask if the present one is over, else None.

        Args:
            facts: What has just happened.
            memory: What the policy remembers. May be changed.
        """

    def ends_by(self, began: int) -> int | None:
        """Return the step at which a mask that began at `began` ends; None if nobody knows yet.

        The answer depends on `began` alone: it is asked for once a mask.
        """

    def misfit(self, masks: Sequence[Mask], memory: Memory) -> str | None:
        """Return why a saved run cannot have these masks and this memory, or None if it can.

        Args:
            masks: All masks so far, the one decided on for next included.
            memory: As it was saved.
        """
