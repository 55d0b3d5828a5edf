"""Which class the number of a pixel in a mask means, and which pixels have none.

Letters: H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.config.bounds import MAX_PIXEL
from finetune.errors import DataError

IGNORED = -100
"""Target of a token or pixel without a class: torch's cross entropy leaves it out, as in
`transformers`."""
_NO_CLASS = -1
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class PixelClasses:
    """The classes of the numbers in masks.

    Args:
        numbers: The number of each class, in the order of the classes.
        ignored: The number of pixels without a class; None if every pixel has one.
    """

    numbers: tuple[int, ...]
    ignored: int | None = None

    @classmethod
    def of(cls, classes: Sequence[str], ignored: int | None, *, named: bool) -> "PixelClasses":
        """Return the numbers of classes: their positions if they are named, else what they say."""
        numbers = range(len(classes)) if named else map(int, classes)
        return cls(tuple(numbers), ignored)

    def encoded(self, mask: Tensor, place: str) -> Tensor:
        """Return the class of each pixel in int16, `IGNORED` for pixels without one.

        Args:
            mask: Numbers of pixels `(..., H, W)`, from 0 to `MAX_PIXEL`.
            place: Words for the mask in a message.

        Raises:
            DataError: a pixel has the number of no class.
        """
        # In int16, not in bytes, which would count as pixels and be scaled to 0..1.
        table = torch.full((MAX_PIXEL + 1,), _NO_CLASS, dtype=torch.int16)
        table[list(self.numbers)] = torch.arange(len(self.numbers), dtype=torch.int16)
        if self.ignored is not None:
            table[self.ignored] = IGNORED
        # One look-up a pixel, however many classes there are.
        found = table[mask.long()]
        if bool((found == _NO_CLASS).any()):
            raise self._unknown(int(mask[found == _NO_CLASS][0]), place)
        return found

    def _unknown(self, number: int, place: str) -> DataError:
        """Return the error for a number that is no class."""
        known = ", ".join(map(str, self.numbers[:_MOST_NAMED]))
        more = ", ..." if len(self.numbers) > _MOST_NAMED else ""
        ignored = "" if self.ignored is None else f", ignored is {self.ignored}"
        error = DataError(
            f"{place} has the number {number} in a pixel, which is no class: classes are "
            f"{known}{more}{ignored}",
            hint=f"task.ignore_index: {number} leaves such pixels out; task.classes names every "
            "class, from number 0 on",
            key=("data", "target"),
        )
        error.is_of_classes = True
        return error
