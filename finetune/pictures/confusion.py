"""Draw a confusion matrix: which class is taken for which, also of a thousand classes.

Letters: C classes.
"""

from collections.abc import Sequence

import numpy as np

from finetune.pictures.drawing import (
    LINE,
    Box,
    Label,
    Photo,
    Picture,
    Shape,
    blended,
    fitting,
    text_width,
)

MOST_NAMED = 20
"""Classes that have rows with names; of more, the matrix is drawn as one image."""
_MOST_PAIRS = 10
_CELL, _MARGIN, _MOST_LABEL, _IMAGE = 32, 10, 150, 400
_LOW, _HIGH = "#eef3f8", "#08519c"
"""Colours of a row's smallest and largest share; they differ in grey as well."""


def draw_confusion(counts: np.ndarray, classes: Sequence[str]) -> Picture:
    """Draw how often each class was predicted as each, as shares of its samples.

    Classes that are taken for each other stand beside each other.

    Args:
        counts: `(C, C)`; rows are the true classes, columns what was predicted.
        classes: Names of the classes.
    """
    order = order_by_confusion(counts)
    counts = counts[np.ix_(order, order)]
    names = [classes[number] for number in order]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    total = int(counts.sum())
    right = int(np.trace(counts))
    head = f"{right} of {total} right (rows: true, columns: said)"
    draw = _with_names if len(names) <= MOST_NAMED else _as_image
    shapes, width, bottom = draw(counts, shares, names)
    pairs = _pairs(counts, names, bottom + 8, width)
    height = round(bottom + 8 + LINE * (1 + len(pairs)) + _MARGIN)
    heading = Label(_MARGIN, _MARGIN, fitting(head, width - 2 * _MARGIN))
    title = f"Confusion matrix: {right} of {total} samples right"
    return Picture(round(width), height, [heading, *shapes, *pairs], title)


def order_by_confusion(counts: np.ndarray) -> list[int]:
    """Return the classes so that those which are confused are neighbours.

    Each class is followed by the one left that it is confused with most, either way round, counted
    in shares of samples; where none is, by the first one left.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # In shares: by counts the largest class would be the neighbour of every other.
    both = (shares + shares.T).astype(np.float64)
    np.fill_diagonal(both, 0)
    size = len(counts)
    left = np.ones(size, dtype=bool)
    order: list[int] = []
    now = int(both.sum(axis=1).argmax()) if size else 0
    while left.any():
        order.append(now)
        left[now] = False
        near = np.where(left, both[now], -1)
        now = int(near.argmax()) if near.max(initial=-1) > 0 else int(left.argmax())
    return order


def _with_names(
    counts: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> tuple[list[Shape], float, float]:
    """Return the matrix with a row and a column of names; its width, and its lower edge."""
    words = [f"{number}: {name}" for number, name in enumerate(names)]
    labels = [fitting(word, _MOST_LABEL) for word in words]
    left = 2 * _MARGIN + max(map(text_width, labels))
    top = _MARGIN + 2 * LINE
    shapes: list[Shape] = []
    for row, label in enumerate(labels):
        y = top + _CELL * row
        shapes.append(Label(_MARGIN, y + 6, label))
        # A column has the number of its class, which stands before its name.
        shapes.append(Label(left + _CELL * (row + 0.5), top - LINE, str(row), "muted", "middle"))
        for column in range(len(names)):
            x, share = left + _CELL * column, float(shares[row, column])
            shapes.append(Box(x, y, _CELL - 1, _CELL - 1, blended(_LOW, _HIGH, share)))
            if counts[row, column]:
                # Three digits fill the cell: more would run into the next one.
                text = _short(int(counts[row, column]))
                colour = "#ffffff" if share > 0.5 else "#1b1f24"
                shapes.append(Label(x + _CELL / 2, y + 8, text, colour, "middle", 13))
    width = max(left + _CELL * len(names) + _MARGIN, 420)
    return shapes, width, top + _CELL * len(names)


def _as_image(
    counts: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> tuple[list[Shape], float, float]:
    """Return the matrix as one image; its width, and its lower edge."""
    low, high = (
        np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.float64)
        for colour in (_LOW, _HIGH)
    )
    # By the root: among a thousand columns a share of 2 % is much, and must be seen.
    pixels = (low + (high - low) * np.sqrt(shares)[..., None]).round().astype(np.uint8)
    top = _MARGIN + LINE + 4
    text = f"{len(names)} classes, similar ones side by side"
    below = Label(_MARGIN, top + _IMAGE + 2, text, "muted")
    photo = Photo(_MARGIN, top, _IMAGE, _IMAGE, _reduced(pixels))
    return [photo, below], _IMAGE + 2 * _MARGIN, top + _IMAGE + LINE


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """Return at most as many pixels as are shown; each keeps the darkest of those it replaces."""
    step = -(-len(pixels) // _IMAGE)
    if step == 1:
        return pixels
    padding = -len(pixels) % step
    # With white, which is never the darkest.
    padded = np.pad(pixels, ((0, padding), (0, padding), (0, 0)), constant_values=255)
    size = len(padded) // step
    # Averaged, a single confused pair would fade into its surroundings.
    blocks = padded.reshape(size, step, size, step, 3)
    reduced: np.ndarray = blocks.min(axis=(1, 3))
    return reduced


def _pairs(counts: np.ndarray, names: Sequence[str], y: float, width: float) -> list[Shape]:
    """Return lines that name the pairs of classes with the most mistakes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    flat = wrong.ravel()
    most = [place for place in np.argsort(-flat, kind="stable")[:_MOST_PAIRS] if flat[place] > 0]
    if not most:
        return [Label(_MARGIN, y, "no sample is wrong", "good")]
    lines = ["most often wrong:"]
    for place in most:
        true, said = divmod(int(place), len(names))
        half = (width - 2 * _MARGIN - text_width(f"{int(flat[place])} times  as ")) / 2
        so, taken = fitting(names[true], half), fitting(names[said], half)
        lines.append(f"{int(flat[place])} times {so} as {taken}")
    return [Label(_MARGIN, y + LINE * place, line) for place, line in enumerate(lines)]


def _short(count: int) -> str:
    """Return a count in at most four signs."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"
