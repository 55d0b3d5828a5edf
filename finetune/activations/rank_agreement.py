"""What the activation cache of one rank agrees on with those of the other ranks of a run.

Where each rank holds a part of the weights, a rank that runs a frozen block gathers its weights
from the others, which must gather it in the same pass. So all ranks answer a pass or none does, and
what one tries out alone it tries while each holds all weights.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from finetune.activations.split_cache import SplitCache


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the ranks of a run agree; the default is that of a run in one process."""

    has_parts: bool = False
    """Whether each rank holds a part of the weights."""
    gathered: Callable[[], AbstractContextManager[object]] = nullcontext
    """Lets each rank hold all weights in a block, which all enter."""
    all_say: Callable[[Sequence[bool]], list[bool]] = list
    """Tells of each statement whether it is true on all ranks; each makes equally many."""
    of_rank_0: Callable[[Sequence[float]], Sequence[float]] = list
    """Returns measured figures as rank 0 has them, so that all ranks decide alike."""

    def is_equal(self, number: float) -> bool:
        """Tell whether all ranks have the same number."""
        (first,) = self.of_rank_0([number])
        return self.all_say([number == first])[0]


def agreed_rows(
    split: SplitCache,
    cuts: Sequence[Tensor],
    view: int,
    agreement: Agreement,
    *,
    untried: Sequence[int],
    attempt: Callable[[int], None],
) -> list[Tensor | None]:
    """Return the row numbers of each batch that all ranks can answer, else None.

    Rows that are read later are verified here: what has been agreed on stays.

    Args:
        split: The cache of a split.
        cuts: The batches of this rank, as sample indices; the other ranks have equally many.
        view: View of the samples.
        agreement: How the ranks agree.
        untried: The number of one batch of each shape that was not tried.
        attempt: Tries the shape of the batch of a number.
    """
    if agreement.all_say([not untried])[0]:
        return _agreed(split, cuts, view, agreement)
    with agreement.gathered():
        try:
            for number in untried:
                attempt(number)
        finally:
            # Also if a sample cannot be read: the other ranks wait for this answer.
            found = _agreed(split, cuts, view, agreement)
    return found


def _agreed(
    split: SplitCache, cuts: Sequence[Tensor], view: int, agreement: Agreement
) -> list[Tensor | None]:
    own = [split.rows_of(cut, view) for cut in cuts]
    told = agreement.all_say([rows is not None for rows in own])
    return [rows if is_answered else None for rows, is_answered in zip(own, told, strict=True)]
