"""Make the data of `configs/shapes.yaml`: images of shapes, and boxes around them.

`python scripts/make_shapes.py` writes `configs/data/shapes/`: images, and `boxes.json` in the form
of COCO. Each image holds one shape on a plain dark ground: a red circle, a green square or a blue
triangle, of random size and at a random place.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 96
SMALLEST, LARGEST = 40, 60
KINDS = ("circle", "square", "triangle")


def make_shapes(folder: Path, count: int = 500) -> None:
    """Write images, and their boxes; equal for every call.

    Args:
        folder: The folder.
        count: Number of images.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(count):
        kind, size = int(draw.integers(len(KINDS))), int(draw.integers(SMALLEST, LARGEST + 1))
        x, y = (int(draw.integers(SIDE - size + 1)) for _ in range(2))
        name = f"{number:04}.png"
        picture = Image.fromarray(_pixels(kind, x, y, size, draw))
        picture.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        box = {"id": number, "image_id": number, "category_id": kind, "bbox": [x, y, size, size]}
        boxes.append({**box, "area": size * size, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(KINDS)]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(document))


def _pixels(kind: int, x: int, y: int, size: int, draw: np.random.Generator) -> np.ndarray:
    """Return an image `(SIDE, SIDE, 3)` with one shape, and a little noise."""
    pixels = np.full((SIDE, SIDE, 3), draw.uniform(0, 60))
    colour = np.zeros(3)
    colour[kind] = draw.uniform(170, 255)
    pixels[_outline(kind, x, y, size)] = colour
    return (pixels + draw.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8)


def _outline(kind: int, x: int, y: int, size: int) -> np.ndarray:
    """Return where a shape is, `(SIDE, SIDE)` bool."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    u, v = (columns - x + 0.5) / size, (rows - y + 0.5) / size
    is_inside: np.ndarray = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    if KINDS[kind] == "circle":
        is_inside &= (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.25
    if KINDS[kind] == "triangle":
        is_inside &= np.abs(u - 0.5) < v / 2
    return is_inside


if __name__ == "__main__":
    place = Path(__file__).resolve().parents[1] / "configs" / "data" / "shapes"
    make_shapes(place)
    print(f"made {place.name} in {place.parent}")
