"""Losses: each gives a sum over samples, tokens or pixels, and how many of these it adds up.

The loss of a step is the sum over all micro-batches of its window, divided by the count of the
whole window: so it does not matter how the window is cut. Letters: B samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.errors import ModelError
from finetune.models.shapes import describe
from finetune.tasks.unfit_outputs import misfit
from finetune.tasks.views import View

Count = int | float | Tensor
"""Number of samples, tokens or pixels, or their total weight; a tensor is `()`."""
LossFunction = Callable[[Any, Batch], Any]
"""Function of outputs and batch. It returns the losses of the samples, tokens or pixels as one
tensor, or their sum and count as two."""
Counter = Callable[[Batch], Count]
"""Function that returns how many samples, tokens or pixels of a batch a loss adds up."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss added up over the samples, tokens or pixels of a micro-batch."""

    total: Tensor
    """The weighted sum, `()`."""
    count: Count
    is_own: bool = False
    """Whether the count came with the sum from a loss of the user's own."""


def divisor(count: Count) -> Count:
    """Return a count to divide by: a window without any token to learn has loss 0, not NaN."""
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count or 1


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """One of the losses of a task, with its weight in their sum."""

    name: str
    weight: float
    function: LossFunction
    whole_window: bool = False
    """Whether it compares the samples of a window, so that no window may be cut."""
    takes_shares: bool = True
    """Whether its targets may be shares of classes `(B, C)` in place of class numbers."""
    count: Counter = len
    """Counts what it adds up of a batch; samples by default."""
    view: View | None = None
    """What it sees of outputs and batch; None for all."""

    def seen(self, outputs: Any, batch: Batch) -> tuple[Any, Batch]:
        """Return what it sees of outputs and batch."""
        return (outputs, batch) if self.view is None else self.view.of(outputs, batch)

    def counted(self, batch: Batch) -> Count:
        """Return how many samples, tokens or pixels of a batch it adds up."""
        return self.count(batch if self.view is None else self.view.of_batch(batch))

    def __call__(self, outputs: Any, batch: Batch) -> LossSum:
        """Return the weighted sum over a micro-batch and its count.

        A loss with `whole_window` may give one number: each sample gets it, so their mean is it.

        Raises:
            ModelError: the network's outputs do not fit the targets, or the loss gives something
                else than one number per sample, token or pixel.
        """
        if self.view is not None:
            outputs, batch = self.seen(outputs, batch)
            if not len(batch):
                # Some losses refuse an empty batch. The empty sum is 0, and keeps the output in
                # the graph.
                return LossSum(outputs.sum(), 0)
        try:
            losses = self.function(outputs, batch)
        # What torch raises for shapes and types that do not fit each other.
        except (RuntimeError, IndexError, ValueError) as error:
            raise misfit(f"loss {self.name!r}", outputs, batch.target, error) from error
        if isinstance(losses, tuple):
            return self._of_pair(losses)
        if isinstance(losses, Tensor) and losses.numel() == 1 and self.whole_window:
            losses = losses.reshape(1).expand(len(batch))
        # A loss over tokens or pixels knows their count; one over samples gives one number each.
        if self.count is len:
            self._refuse_other_than_samples(losses, len(batch))
        return LossSum(self._weighted(losses).sum(), self.count(batch))

    def _weighted(self, losses: Tensor) -> Tensor:
        return losses if self.weight == 1 else losses * self.weight

    def _of_pair(self, pair: tuple[Any, ...]) -> LossSum:
        """Return the sum and count that a loss of the user's own gives."""
        if len(pair) == 2 and all(_is_number(one) for one in pair):
            total, count = pair
            if isinstance(total, Tensor):
                # Detached: the count divides, and no gradient is to go through it.
                count = count.detach().reshape(()) if isinstance(count, Tensor) else count
                return LossSum(self._weighted(total.reshape(())), count, is_own=True)
        told = ", ".join(map(describe, pair))
        raise ModelError(
            f"loss {self.name!r} gives ({told}), needs a sum and a count", key=("task",)
        )

    def _refuse_other_than_samples(self, losses: Any, samples: int) -> None:
        """Raise unless there is one loss for each sample."""
        if isinstance(losses, Tensor) and losses.shape == (samples,):
            return
        is_one = isinstance(losses, Tensor) and losses.numel() == 1
        raise ModelError(
            f"loss {self.name!r} gives {describe(losses)}, needs one number per sample "
            f"({samples},)",
            hint=_ONE_NUMBER if is_one else None,
            key=("task",),
        )


_ONE_NUMBER = (
    "a mean over the samples is taken here, so give each its own (reduction='none'); or return the "
    "sum and the count; a loss that compares samples has the attribute whole_window = True, and "
    "gives one number"
)
"""Hint for a loss that is one number."""


def _is_number(value: object) -> bool:
    """Tell whether a value is one number, as a tensor or plain."""
    return (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, int | float)
