"""One image that holds a small copy of each of several, as TensorBoard's projector wants them."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 32
"""Pixels of a small copy in height and width."""


def sprite_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return a square of small copies, row by row, each with its own proportions.

    Args:
        images: Pixels `(H, W, 3)` uint8, at least one.
    """
    per_row = math.ceil(math.sqrt(len(images)))
    whole = np.full((per_row * SIDE, per_row * SIDE, 3), 255, dtype=np.uint8)
    for number, pixels in enumerate(images):
        scale = SIDE / max(pixels.shape[:2])
        # A very narrow image would get a side of 0 pixels, which Pillow refuses.
        height, width = (max(1, round(size * scale)) for size in pixels.shape[:2])
        small = np.asarray(Image.fromarray(pixels).resize((width, height)))
        top, left = (place * SIDE for place in divmod(number, per_row))
        top, left = top + (SIDE - height) // 2, left + (SIDE - width) // 2
        whole[top : top + height, left : left + width] = small
    return whole
