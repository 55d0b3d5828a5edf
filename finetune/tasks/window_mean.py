"""The mean of a loss over a window that goes through the network in micro-batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.errors import ModelError
from finetune.tasks.weighted_loss import Count, LossSum, WeightedLoss, divisor

Parameters = Callable[[], Iterable[Tensor]]
"""Returns parameters: few steps need them, and each step would have to collect them."""


class LossMean(Protocol):
    """Divides the losses of a window, as `WindowMean` does."""

    def shares(self, parts: Sequence[LossSum]) -> list[Tensor]:
        """Return what a micro-batch adds to the mean of each loss, `()` each."""
        ...

    def correct(self, loss: Tensor, parameters: Parameters) -> Tensor:
        """Finish the gradients of the window; return its mean."""
        ...


class WindowMean:
    """Divides the sums of micro-batches by the counts of their whole window.

    Samples, tokens and pixels are counted in the targets, before the first forward pass, so every
    micro-batch has its final divisor at once. The count that a loss of the user's own gives with
    its sum is known only when all micro-batches are through: `correct` puts it in.

    Args:
        losses: The losses of the task.
        window: The micro-batches of one step.
        counts: What each loss counts in the whole window, if `window` is only a part of it.
    """

    __slots__ = ("_counts", "_is_cut", "_losses", "found")

    def __init__(
        self,
        losses: Sequence[WeightedLoss],
        window: Sequence[Batch],
        counts: Sequence[Count] | None = None,
    ) -> None:
        self._losses, self._is_cut = losses, len(window) > 1 or counts is not None
        self._counts = counts_of(losses, window) if counts is None else counts
        self.found: Count | None = None
        """The count that a loss gave with its sums, so far; None if none gave one."""

    def shares(self, parts: Sequence[LossSum]) -> list[Tensor]:
        """Return what a micro-batch adds to the mean of each loss, `()` each.

        Args:
            parts: The sums of the micro-batch, in the order of the losses.

        Raises:
            ModelError: a loss gives its own count beside other losses, and the window is cut.
        """
        return [
            part.total / divisor(self._own(number, part.count) if part.is_own else count)
            for number, (part, count) in enumerate(zip(parts, self._counts, strict=True))
        ]

    def correct(self, loss: Tensor, parameters: Parameters) -> Tensor:
        """Put in the count that a loss gave with its sums, if one did; return the window's mean.

        Args:
            loss: Sum of all shares, `()`.
            parameters: Returns the parameters, whose gradients are scaled in place.
        """
        if self.found is None:
            return loss
        # The shares were divided by the number of samples, for lack of the true count.
        factor = self._counts[0] / divisor(self.found)
        gradients = [one.grad for one in parameters() if one.grad is not None]
        torch._foreach_mul_(gradients, factor)
        return loss * factor

    def _own(self, number: int, count: Count) -> Count:
        """Return the divisor for a loss that gives its own count."""
        if not self._is_cut:
            return count
        if len(self._losses) > 1:
            raise ModelError(
                f"loss {self._losses[number].name!r} gives its own count, which is not known until "
                "the whole window is through, and other losses are beside it",
                hint="leave out train.micro_batch, or let it return one number per sample",
                key=("task", "losses"),
            )
        self.found = count if self.found is None else self.found + count
        return self._counts[number]


class RunningMeans:
    """Adds up the losses of a split over its batches, each divided by its own count at the end."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: list[tuple[float, float]] = []

    def add(self, parts: Sequence[LossSum]) -> None:
        """Add the sums of a batch, in the order of the losses."""
        found = [(float(part.total), float(part.count)) for part in parts]
        old = self._sums or [(0.0, 0.0)] * len(found)
        # Sums and counts: a mean of batch means would weigh a short last batch too much.
        self._sums = [(a + c, b + d) for (a, b), (c, d) in zip(old, found, strict=True)]

    def each(self) -> list[float]:
        """Return the mean of each loss."""
        # Without anything to learn the loss is 0, as that of such a window is.
        return [total / (count or 1) for total, count in self._sums]

    def total(self) -> float:
        """Return the sum of the means of all losses."""
        return sum(self.each())


def counts_of(losses: Sequence[WeightedLoss], window: Sequence[Batch]) -> list[Count]:
    """Return what each loss counts in the micro-batches of a window, of which there is one."""
    if len(window) == 1:  # the usual case, in every step
        return [loss.counted(window[0]) for loss in losses]
    return [_added(loss.counted(batch) for batch in window) for loss in losses]


def _added(counts: Iterable[Count]) -> Count:
    """Return the sum of counts, of which there is at least one."""
    first, *others = counts
    # Not from 0: with tensors that is one more operation a step.
    return sum(others, start=first)
