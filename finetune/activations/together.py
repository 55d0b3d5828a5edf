"""What the cache asks of the other processes of a run, each of which holds a part of the weights.

A process that runs a frozen block gathers its weights from the others, which must gather it in the
same pass. So all of them answer a pass or none does, and what one tries out alone it tries while
each holds all weights.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from finetune.activations.split_cache import SplitCache


@dataclass(frozen=True, slots=True)
class Together:
    """The processes of a run; by default a single one, or some that share no weights."""

    is_on: bool = False
    """Whether each process holds a part of the weights."""
    whole: Callable[[], AbstractContextManager[object]] = nullcontext
    """Lets each process hold all weights in a block, which all enter together."""
    all_claim: Callable[[Sequence[bool]], list[bool]] = list
    """Tells of each claim whether all processes make it; each makes equally many."""
    of_first: Callable[[Sequence[float]], Sequence[float]] = list
    """Returns measured figures as the first of several processes has them: all decide alike."""


def answered_by_all(
    split: SplitCache,
    cuts: Sequence[Tensor],
    view: int,
    together: Together,
    *,
    untried: Sequence[Tensor],
    attempt: Callable[[Tensor], None],
) -> list[Tensor | None]:
    """Return the row numbers of each batch that all processes can answer, else None.

    Rows that are read later are verified here: what has been agreed on stays.

    Args:
        split: The cache of a split.
        cuts: The batches of this process, as sample indices; the others have equally many.
        view: View of the samples.
        together: The processes.
        untried: One batch of each shape that was not tried.
        attempt: Tries the shape of a batch.
    """
    if not together.all_claim([not untried])[0]:
        try:
            with together.whole():
                for cut in untried:
                    attempt(cut)
        finally:
            # Also if a sample cannot be read: the others wait for this answer.
            found = _agreed(split, cuts, view, together)
        return found
    return _agreed(split, cuts, view, together)


def _agreed(
    split: SplitCache, cuts: Sequence[Tensor], view: int, together: Together
) -> list[Tensor | None]:
    own = [split.rows_of(cut, view) for cut in cuts]
    told = together.all_claim([rows is not None for rows in own])
    return [rows if is_answered else None for rows, is_answered in zip(own, told, strict=True)]
