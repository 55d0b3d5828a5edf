"""Where phases lie in a run: the one walk over their triggers, and what is certain of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

from finetune.config.freeze import AfterEpochs, AfterSteps, AtFraction, OnPlateau, Trigger
from finetune.train.epochs import Epochs


@dataclass(frozen=True, slots=True)
class Span:
    """Where a phase lies in the run."""

    began: int
    ends: int
    """Step at which it ends at the latest."""
    is_certain: bool
    """Whether no phase up to its end waits for a metric, even one that is bounded otherwise."""


def walk(
    untils: Iterable[Trigger | None], epochs: Epochs, total: int, *, began: int = 0
) -> Iterator[Span]:
    """Yield the span of each phase, as if every plateau came as late as it may.

    All that looks ahead goes by this walk: `plan`, notes on triggers, the loop and the activation
    cache. So a span is certain for all of them or for none.

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
    """Return the step at which a phase that began at `began` ends at the latest."""
    match until:
        case None:
            return total
        case AfterEpochs(epochs=count):
            return min(total, epochs.after(began, count))
        case AfterSteps(steps=steps):
            return min(total, began + steps)
        case AtFraction(fraction=fraction):
            return min(total, max(began, round(fraction * total)))
        case OnPlateau(at_most=at_most):
            return latest_end(at_most, began, epochs, total)
        case _:
            assert_never(until)
