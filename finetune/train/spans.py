"""Compute the span of each phase in steps, by the only walk over triggers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

from finetune.config.triggers import AfterEpochs, AfterSteps, AtFraction, OnPlateau, Trigger
from finetune.train.epochs import Epochs


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of a phase."""

    began: int
    ends: int
    """Latest step at which the phase ends."""
    is_certain: bool
    """Whether neither this phase nor one before it ends on a plateau, not even a bounded one."""


def walk(
    untils: Iterable[Trigger | None], epochs: Epochs, total: int, *, began: int = 0
) -> Iterator[Span]:
    """Yield the span of each phase, as if every plateau came as late as it may.

    `plan`, the notes on triggers, the loop and the activation cache all use this walk, so a span is
    certain for all of them or for none.

    Args:
        untils: What ends each phase, in order.
        epochs: Where the epochs of the run begin.
        total: Steps of the run.
        began: First step of the first of these phases.
    """
    is_certain = True
    for until in untils:
        is_certain = is_certain and not isinstance(until, OnPlateau)
        ends = latest_end(until, began, epochs, total)
        yield Span(began, ends, is_certain)
        began = ends


def latest_end(until: Trigger | None, began: int, epochs: Epochs, total: int) -> int:
    """Return the latest step at which a phase that began at `began` ends."""
    match until:
        case None:
            return total
        case AfterEpochs(epochs=count):
            return min(total, epochs.after(began, count))
        case AfterSteps(steps=steps):
            return min(total, began + steps)
        case AtFraction(fraction=fraction):
            # That share of the run may be done before the phase begins: then it has no step.
            return min(total, max(began, round(fraction * total)))
        case OnPlateau(at_most=at_most):
            return latest_end(at_most, began, epochs, total)
        case _:
            assert_never(until)
