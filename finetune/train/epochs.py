"""Convert between steps and epochs, also for a run that was continued with other data.

Letters: S steps per epoch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Self


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs of a run. Their length changes with the data.

    A change of the data cuts the epoch short in which it falls: the next one begins there.

    Args:
        lengths: S of each data set, in order.
        begins: First step on each data set; 0 for the first.
    """

    lengths: tuple[int, ...]
    begins: tuple[int, ...] = (0,)
    numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Number of the first epoch on each data set."""

    def __post_init__(self) -> None:
        # Not strict: the present data set has a length and no end yet.
        spans = zip(pairwise(self.begins), self.lengths, strict=False)
        # Rounded up: an epoch that was cut short counts as one.
        whole = accumulate(-(-(end - begin) // length) for (begin, end), length in spans)
        object.__setattr__(self, "numbers", (0, *whole))

    @classmethod
    def of(cls, past: Sequence[tuple[int, int]], length: int) -> Self:
        """Return the epochs of a run.

        Args:
            past: For each earlier data set, the step at which it ended, and S.
            length: S of the present data set.
        """
        lengths = (*(length for _, length in past), length)
        return cls(lengths, (0, *(end for end, _ in past)))

    def place(self, step: int) -> tuple[int, int]:
        """Return where a run is after `step` steps: number of its epoch, and steps done in it."""
        data = self._data_at(step)
        whole, done = divmod(step - self.begins[data], self.lengths[data])
        return self.numbers[data] + whole, done

    def count(self, step: int) -> float:
        """Return how many epochs the first `step` steps are, as a fraction."""
        data = self._data_at(step)
        return self.numbers[data] + (step - self.begins[data]) / self.lengths[data]

    def after(self, began: int, epochs: int) -> int:
        """Return the step at which `epochs` epochs have passed since the step `began`."""
        data, numbers = self._data_at(began), self.numbers
        # Exact fractions: a rounded float could move the end of an epoch by a step.
        position = numbers[data] + Fraction(began - self.begins[data], self.lengths[data]) + epochs
        data = max(bisect_right(numbers, position) - 1, data)
        # Rounded up: an epoch is over when its last step is done.
        step = self.begins[data] + -(-(position - numbers[data]) * self.lengths[data] // 1)
        # an epoch that was cut short is over where the next data begins
        return int(min([step, *self.begins[data + 1 : data + 2]]))

    def _data_at(self, step: int) -> int:
        """Return the index of the data set that the step after `step` steps is trained on."""
        return bisect_right(self.begins, step) - 1
