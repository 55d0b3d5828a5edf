"""Where epochs begin, counted in optimizer steps, also where a run has gone on with other data.

Letters: S steps of an epoch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Self


@dataclass(frozen=True, slots=True)
class Epochs:
    """Epochs of one length, or of another one from each change of the data on.

    A change cuts the epoch in which it falls short: the next one begins there.

    Args:
        lengths: S of each data, in order.
        begins: The step from which on each of them is trained on; the first is 0.
    """

    lengths: tuple[int, ...]
    begins: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, past: Sequence[tuple[int, int]], length: int) -> Self:
        """Return the epochs of a run.

        Args:
            past: For each data that the run had before, the step of its end and S.
            length: S of the present data.
        """
        lengths = (*(length for _, length in past), length)
        return cls(lengths, (0, *(end for end, _ in past)))

    def place(self, step: int) -> tuple[int, int]:
        """Return which epoch the step after `step` steps belongs to, and the steps done of it."""
        data = self._data_at(step)
        whole, done = divmod(step - self.begins[data], self.lengths[data])
        return self._numbers()[data] + whole, done

    def count(self, step: int) -> float:
        """Return how many epochs `step` steps are."""
        data = self._data_at(step)
        return self._numbers()[data] + (step - self.begins[data]) / self.lengths[data]

    def after(self, began: int, epochs: int) -> int:
        """Return the step at which so many epochs have passed since the step `began`."""
        data, numbers = self._data_at(began), self._numbers()
        position = numbers[data] + Fraction(began - self.begins[data], self.lengths[data]) + epochs
        data = max(bisect_right(numbers, position) - 1, data)
        step = self.begins[data] + -(-(position - numbers[data]) * self.lengths[data] // 1)
        # an epoch that was cut short is over where the next data begins
        return int(min([step, *self.begins[data + 1 : data + 2]]))

    def _data_at(self, step: int) -> int:
        return bisect_right(self.begins, step) - 1

    def _numbers(self) -> list[int]:
        """Return the number of the epoch that begins with each data."""
        spans = zip(pairwise(self.begins), self.lengths, strict=False)
        return [0, *accumulate(-(-(end - begin) // length) for (begin, end), length in spans)]
