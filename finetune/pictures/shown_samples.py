"""Draw samples with what was said of them: the most wrong ones, the least certain ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.pictures.drawing import (
    LINE,
    Box,
    Label,
    Path,
    Photo,
    Picture,
    Shape,
    fitting,
    text_width,
)

MOST_SHOWN = 12
_MARGIN, _THUMB, _COLUMNS, _TEXT_WIDTH, _MOST_LINES = 10, 150, 3, 460, 6
_THUMB_OF_BOXES, _SMALL = 235, 12
"""Side of an image with boxes, whose names are written small."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A box on an image, by its corners in pixels of the image."""

    corners: tuple[float, float, float, float]
    """Left, upper, right and lower edge."""
    name: str
    is_said: bool
    """Whether the network predicted this box; else it is a target."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample as a person sees it."""

    said: str
    """What was predicted."""
    so: str
    """What is true."""
    note: str = ""
    """Why it is shown, such as its loss."""
    is_right: bool = False
    pixels: Sequence[np.ndarray] = ()
    """Images `(H, W, 3)` uint8, drawn side by side: the input, then masks if there are any."""
    outlines: Sequence[Outline] = ()
    """Boxes on the first image."""
    words: Sequence[str] = ()
    """The text as words."""
    said_words: range = range(0)
    """Places of the words that were predicted as an answer: a line is drawn above them."""
    true_words: range = range(0)
    """Places of the words that are the answer: a line is drawn below them."""
    marks: Sequence[str | None] = ()
    """For each word what is wrong with it, or None; as many as there are words, or none."""


def draw_samples(samples: Sequence[ShownSample], heading: str) -> Picture:
    """Draw samples below a heading: images in a grid, texts one below the other."""
    samples = samples[:MOST_SHOWN]
    if any(sample.pixels for sample in samples):
        return _grid(samples, heading)
    # A text takes the height of a row of images: twelve would be five screens.
    return _column(samples[: MOST_SHOWN // 2], heading)


def colours_of_classes(mask: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of class numbers `(H, W)` as colours `(H, W, 3)`; pixels below 0 are grey.

    Neighbouring classes differ in hue and in grey.
    """
    # The eight of Okabe and Ito; beyond them darker and darker.
    base = np.array(
        [
            *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
            *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
        ],
        dtype=np.float64,
    )
    numbers = np.arange(max(1, count))
    colours = base[numbers % 8] * (0.6 ** (numbers // 8))[:, None]
    table = np.concatenate([colours, [[128, 128, 128]]]).round().astype(np.uint8)
    painted: np.ndarray = table[np.where(mask < 0, len(table) - 1, mask)]
    return painted


def _grid(samples: Sequence[ShownSample], heading: str) -> Picture:
    """Return images in rows of three; of two, where they have boxes."""
    per_sample = max(len(sample.pixels) for sample in samples)
    has_boxes = any(sample.outlines for sample in samples)
    side, fit = (_THUMB_OF_BOXES, 2) if has_boxes else (_THUMB, _COLUMNS)
    columns = fit if per_sample == 1 else 1
    width = (side + _MARGIN) * max(columns * per_sample, 2) + _MARGIN
    cell = side if columns > 1 else width - 2 * _MARGIN
    height = side + 3 * LINE + _MARGIN
    shapes: list[Shape] = [Label(_MARGIN, _MARGIN, fitting(heading, width - 2 * _MARGIN))]
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        x = _MARGIN + (side + _MARGIN) * column
        y = _MARGIN + LINE + 6 + height * row
        photos = [
            _thumb(x + (side + _MARGIN) * place, y, pixels, side)
            for place, pixels in enumerate(sample.pixels)
        ]
        shapes += photos
        if photos:
            shapes += [shape for one in sample.outlines for shape in _outlined(one, photos[0])]
        colour = "good" if sample.is_right else "bad"
        lines = ((f"said {sample.said}", colour), (f"is {sample.so}", "ink"))
        for place, (text, tint) in enumerate((*lines, (sample.note, "muted"))):
            shapes.append(Label(x, y + side + LINE * place, fitting(text, cell), tint))
    rows = -(-len(samples) // columns)
    total = round(_MARGIN + LINE + 6 + height * rows)
    return Picture(width, total, shapes, heading)


def _thumb(x: float, y: float, pixels: np.ndarray, side: int) -> Photo:
    """Return an image as large as its square allows, with its own proportions."""
    scale = side / max(pixels.shape[:2])
    width, height = (max(1.0, size * scale) for size in (pixels.shape[1], pixels.shape[0]))
    return Photo(x + (side - width) / 2, y + (side - height) / 2, width, height, pixels)


def _outlined(one: Outline, photo: Photo) -> list[Shape]:
    """Return a box on an image, inside of which its name is written.

    A true one is thick, with its name in the lower left corner; a predicted one is thin, with its
    name in the upper right corner.
    """
    high, wide = photo.pixels.shape[:2]
    # A network that has diverged gives corners that lie nowhere.
    finite = np.nan_to_num(np.array(one.corners, dtype=np.float64), posinf=wide, neginf=0)
    xs = photo.x + finite[[0, 2]].clip(0, wide) * (photo.width / wide)
    ys = photo.y + finite[[1, 3]].clip(0, high) * (photo.height / high)
    (left, right), (upper, lower) = xs.tolist(), ys.tolist()
    colour, thick = ("bad", 2) if one.is_said else ("first", 4)
    ring = [(left, upper), (right, upper), (right, lower), (left, lower), (left, upper)]
    name = fitting(one.name, max(24.0, right - left), size=_SMALL)
    length = text_width(name, _SMALL)
    x, y = (right - length, upper) if one.is_said else (left, lower - _SMALL - 4)
    # On paper of its own: a photo may have any colour.
    paper = Box(x, y, length, _SMALL + 4, "paper")
    return [Path(ring, colour, thick), paper, Label(x, y, name, colour, size=_SMALL)]


def _column(samples: Sequence[ShownSample], heading: str) -> Picture:
    """Return texts one below the other, each with its words wrapped and marked."""
    width = _TEXT_WIDTH + 2 * _MARGIN
    shapes: list[Shape] = [Label(_MARGIN, _MARGIN, fitting(heading, _TEXT_WIDTH))]
    y: float = _MARGIN + LINE + 6
    for sample in samples:
        shapes.append(Box(_MARGIN, y, _TEXT_WIDTH, 1, "grid"))
        y += 4
        colour = "good" if sample.is_right else "bad"
        half = _TEXT_WIDTH - text_width(sample.note) - 12
        note = Label(_MARGIN + _TEXT_WIDTH, y, sample.note, "muted", "right")
        shapes += [Label(_MARGIN, y, fitting(f"said {sample.said}", half), colour), note]
        shapes.append(Label(_MARGIN, y + LINE, fitting(f"is {sample.so}", _TEXT_WIDTH)))
        more, y = _wrapped(sample, y + 2 * LINE)
        shapes += more
        y += 8
    return Picture(width, round(y + _MARGIN), shapes, heading)


def _wrapped(sample: ShownSample, y: float) -> tuple[list[Shape], float]:
    """Return the words of a sample over a few lines, and where they end."""
    shapes: list[Shape] = []
    x, line, gap = float(_MARGIN), 0, text_width(" ")
    # Words without a mark share a label as far as their line goes: one is drawn at once.
    plain: Label | None = None
    marks = sample.marks or [None] * len(sample.words)
    for place, (word, mark) in enumerate(zip(sample.words, marks, strict=True)):
        shown = fitting(word, _TEXT_WIDTH / 2) + (f" [{mark}]" if mark else "")
        shown = fitting(shown, _TEXT_WIDTH)
        length = text_width(shown)
        if x + length > _MARGIN + _TEXT_WIDTH:
            x, line, plain = float(_MARGIN), line + 1, None
        if line == _MOST_LINES:
            shapes.append(Label(_MARGIN, y + LINE * line, "...", "muted"))
            break
        # A line below as well: colour alone is not enough.
        is_said, is_true = place in sample.said_words, place in sample.true_words
        if mark or is_true:
            shapes.append(Box(x, y + LINE * line + 19, length, 2, "bad" if mark else "good"))
        if is_said:
            shapes.append(Box(x, y + LINE * line, length, 2, "bad"))
        is_plain = not (mark or is_said or is_true)
        if plain is not None and is_plain:
            plain = replace(plain, text=f"{plain.text} {shown}")
            shapes[-1] = plain
        else:
            tint = "bad" if mark else "muted" if is_plain else "ink"
            label = Label(x, y + LINE * line, shown, tint)
            shapes.append(label)
            plain = label if is_plain else None
        x += length + gap
    return shapes, y + LINE * (line + 1)
