"""Predicted masks: a class for each pixel of an image, and their pictures.

Letters: H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.importing import require

_COLOURS = 256
"""Colours of a palette."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskRecord:
    """The class predicted for each pixel of one image."""

    mask: Tensor
    """Class numbers `(H, W)` int64, of the size of the image as it was handed in."""
    shares: dict[str, float]
    """Share of the pixels of each class."""
    numbers: tuple[int, ...]
    """The number that the pixels of each class have in masks of files."""

    def row(self) -> dict[str, Any]:
        """Return the share of the pixels of each class."""
        return {"shares": self.shares}

    def picture(self) -> bytes:
        """Return the mask as a PNG, with the numbers that the masks of training have.

        With a palette of 256 colours where that is enough for the numbers, else in grey of 16 bits.
        """
        pil = require("PIL.Image", extra="vision")
        values = torch.tensor(self.numbers)[self.mask].numpy()
        if max(self.numbers) < _COLOURS:
            image = pil.fromarray(values.astype(np.uint8))
            # Colours for the eye alone: pixels stay numbers, so the PNG can be learnt as a mask.
            image.putpalette(_palette())
        else:
            image = pil.fromarray(values.astype(np.uint16))
        file = BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()


def _palette() -> Sequence[int]:
    """Return colours that differ for neighbouring numbers, three bytes each; 0 is black.

    The colour map of PASCAL VOC: bits 0, 3, 6 of a number are the upper bits of red, bits 1, 4, 7
    those of green, bits 2, 5 those of blue, the lowest of them first.
    """
    colours: list[int] = []
    for number in range(_COLOURS):
        colours += [
            sum(((number >> (channel + 3 * place)) & 1) << (7 - place) for place in range(3))
            for channel in range(3)
        ]
    return colours
