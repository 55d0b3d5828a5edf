"""A picture as a list of shapes, and how it becomes pixels or SVG: the one house style.

Colours are named by their role, so that a picture can be light or dark. The hues are those of Okabe
and Ito, which people with any kind of colour vision tell apart, and they differ in grey as well.

Letters: H height, W width, in pixels.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.pictures.finished_picture import Drawn
from finetune.visible import one_line

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#59636e",
    "grid": "#d8dee4",
    "frozen": "#c3d2e6",
    "trained": "#d55e00",
    "mixed": "#edb68c",
    "first": "#0072b2",
    "second": "#d55e00",
    "good": "#009e73",
    "bad": "#d55e00",
}
DARK: Mapping[str, str] = {
    "paper": "#16191d",
    "ink": "#e8eaed",
    "muted": "#9aa4af",
    "grid": "#343b43",
    "frozen": "#3d4f66",
    "trained": "#e8823a",
    "mixed": "#94613c",
    "first": "#56b4e9",
    "second": "#e69f00",
    "good": "#2fc495",
    "bad": "#e8823a",
}
FONT_SIZE, LINE = 16, 22
"""Pixels. TensorBoard first shows a picture 340 pixels wide, so letters must be large."""
_FAMILY = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    """Role or `#rrggbb`, as for all shapes."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    fill: str


@dataclass(frozen=True, slots=True)
class Path:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1


@dataclass(frozen=True, slots=True)
class Label:
    """A text on one line; hidden characters in it are escaped."""

    x: float
    y: float
    """Upper edge of the line."""
    text: str
    colour: str = "ink"
    align: str = "left"
    """`left`, `middle` or `right`: which end of the text lies at `x`."""
    size: int = FONT_SIZE


@dataclass(frozen=True, slots=True)
class Photo:
    """Pixels `(H, W, 3)` uint8, stretched over a rectangle without blending."""

    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray


Shape = Box | Dot | Path | Label | Photo


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes on paper, the later ones on top."""

    width: int
    height: int
    shapes: Sequence[Shape]
    title: str
    """What the picture shows, for people who hear it."""


def drawn(picture: Picture) -> Drawn:
    """Return the picture as pixels and as a small PNG, in light colours."""
    image = _painted(picture, LIGHT)
    # A palette would change the colours of a photo, and these are what it shows.
    has_photo = any(isinstance(shape, Photo) for shape in picture.shapes)
    return Drawn(np.asarray(image), _encoded(image if has_photo else _with_few_colours(image)))


def as_pixels(picture: Picture, theme: Mapping[str, str] = LIGHT) -> np.ndarray:
    """Return the picture as pixels `(H, W, 3)`, uint8."""
    return np.asarray(_painted(picture, theme))


def _painted(picture: Picture, theme: Mapping[str, str]) -> Image.Image:
    image = Image.new("RGB", (picture.width, picture.height), theme["paper"])
    draw = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _paint(image, draw, shape, theme)
    return image


def _with_few_colours(image: Image.Image) -> Image.Image:
    """Return a drawing with a palette: a third of the bytes, in half the time.

    Only the edges of letters have more colours; theirs move by a shade that nobody sees.
    """
    return image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def as_svg(picture: Picture) -> str:
    """Return the picture as an `<svg>` element for a page, with all text escaped.

    It is light. Where the page defines `dark_style()` and is dark, it is dark.
    """
    parts = [_element(shape) for shape in picture.shapes]
    title = escape(one_line(picture.title))
    size = f'viewBox="0 0 {picture.width} {picture.height}" width="{picture.width}"'
    style = f'style="max-width:100%;height:auto;background:{_of_theme("paper")}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img" aria-label="{title}" '
        f'font-family="{_FAMILY}">{"".join(parts)}</svg>'
    )


def dark_style() -> str:
    """Return CSS that makes the pictures of a page dark where the person prefers that."""
    values = "".join(f"--picture-{role}:{colour};" for role, colour in DARK.items())
    return f"@media (prefers-color-scheme: dark) {{ :root {{ {values} }} }}"


@lru_cache(maxsize=4096)  # words are measured to be placed, and again to be cut
def text_width(text: str, size: int = FONT_SIZE) -> float:
    """Return the width of a text in pixels."""
    return sum(font.getlength(run) for run, font in _runs(one_line(text), size))


def fitting(text: str, width: float, *, keeps_end: bool = False, size: int = FONT_SIZE) -> str:
    """Return a text on one line that fits a width, with dots where the rest was.

    Args:
        text: The text.
        width: In pixels.
        keeps_end: Whether its end stays, not its beginning: blocks of a network differ there.
        size: Size of the font, in pixels.
    """
    text = one_line(text)
    if text_width(text, size) <= width:
        return text
    # A text of a megabyte must not be measured letter by letter.
    text = text[-400:] if keeps_end else text[:400]
    while text and text_width(f"{text}...", size) > width:
        text = text[1:] if keeps_end else text[:-1]
    # Not cut right beside a dot, which would read as a fourth one.
    return f"...{text.lstrip('.')}" if keeps_end else f"{text.rstrip('. ')}..."


def blended(low: str, high: str, share: float) -> str:
    """Return the colour between two of the form `#rrggbb`, at a share of the way."""
    ends = zip(_rgb(low), _rgb(high), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def _paint(
    image: Image.Image, draw: ImageDraw.ImageDraw, shape: Shape, theme: Mapping[str, str]
) -> None:
    """Draw one shape."""
    match shape:
        case Box(x, y, width, height, fill):
            # Pillow counts the last pixel in; a range that is not empty is seen.
            right, bottom = max(x, x + width - 1), max(y, y + height - 1)
            draw.rectangle((x, y, right, bottom), fill=theme.get(fill, fill))
        case Dot(x, y, radius, fill):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), theme.get(fill, fill))
        case Path(points, colour, width):
            draw.line(list(points), theme.get(colour, colour), round(width))
        case Label(x, y, text, colour, align, size):
            _write(draw, (x, y), one_line(text), align, size, theme.get(colour, colour))
        case Photo(x, y, width, height, pixels):
            size_of = (max(1, round(width)), max(1, round(height)))
            photo = Image.fromarray(pixels).resize(size_of, _sampling(pixels, size_of))
            image.paste(photo, (round(x), round(y)))


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    align: str,
    size: int,
    ink: str,
) -> None:
    """Draw a text on one line."""
    x, y = place
    if align != "left":
        x -= {"middle": 0.5, "right": 1.0}[align] * text_width(text, size)
    runs = _runs(text, size)
    for number, (run, font) in enumerate(runs):
        draw.text((x, y), run, ink, font)
        if number + 1 < len(runs):
            x += font.getlength(run)


def _sampling(pixels: np.ndarray, size: tuple[int, int]) -> Image.Resampling:
    """Return how pixels are resized: averaged when made smaller, kept as squares when larger."""
    is_smaller = pixels.shape[1] > size[0] or pixels.shape[0] > size[1]
    return Image.Resampling.BOX if is_smaller else Image.Resampling.NEAREST


def _element(shape: Shape) -> str:
    """Return one shape as an element of SVG."""
    match shape:
        case Box(x, y, width, height, fill):
            size = f'width="{width:.1f}" height="{height:.1f}"'
            return f'<rect x="{x:.1f}" y="{y:.1f}" {size} style="fill:{_of_theme(fill)}"/>'
        case Dot(x, y, radius, fill):
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
            return f'<circle {place} style="fill:{_of_theme(fill)}"/>'
        case Path(points, colour, width):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            style = f"fill:none;stroke:{_of_theme(colour)};stroke-width:{width}"
            return f'<polyline points="{line}" style="{style}"/>'
        case Label(x, y, text, colour, align, size):
            anchor = {"left": "start", "middle": "middle", "right": "end"}[align]
            # SVG places a text by its baseline, a `Label` by its upper edge.
            place = f'x="{x:.1f}" y="{y + 0.85 * size:.1f}" text-anchor="{anchor}"'
            style = f"fill:{_of_theme(colour)};font-size:{size}px;white-space:pre"
            # Names may read from right to left; they must not turn their neighbours round.
            style += ";unicode-bidi:isolate"
            return f'<text {place} style="{style}">{escape(one_line(text))}</text>'
        case Photo(x, y, width, height, pixels):
            data = base64.b64encode(as_png(pixels)).decode()
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            style = 'preserveAspectRatio="none" style="image-rendering:pixelated"'
            return f'<image {place} {style} href="data:image/png;base64,{data}"/>'


def as_png(pixels: np.ndarray, *, compress_level: int = 9) -> bytes:
    """Return pixels `(H, W, 3)` uint8 as the bytes of a PNG; level 1 is quick, 9 is small."""
    return _encoded(Image.fromarray(pixels), compress_level)


def _encoded(image: Image.Image, compress_level: int = 3) -> bytes:
    file = _PngFile()
    image.save(file, compress_level=compress_level)
    return file.getvalue()


class _PngFile(BytesIO):
    """Bytes that Pillow takes for a file: for a format by its name it would load five of them."""

    name = "picture.png"


def _of_theme(colour: str) -> str:
    """Return a colour as CSS: a role is taken from the page, where it defines one."""
    return f"var(--picture-{colour},{LIGHT[colour]})" if colour in LIGHT else colour


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


_FONTS = ("", "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "unifont.ttf")
"""Pillow's own font, and files of the system's fonts that know other scripts."""


@cache
def _font(number: int, size: int) -> _Font | None:
    """Return one of these fonts; None if the system lacks it."""
    if number == 0:
        return ImageFont.load_default(size)
    try:
        # Pillow searches the system's folders of fonts for the name, which takes a while.
        return ImageFont.truetype(_FONTS[number], size)
    except OSError:
        return None


def _runs(text: str, size: int) -> list[tuple[str, _Font]]:
    """Cut a text into runs of letters that one font has."""
    own = _font(0, size)
    assert own is not None
    # Nearly every label: no font has to be looked for, letter by letter.
    if text.isascii():
        return [(text, own)]
    runs: list[tuple[str, _Font]] = []
    for letter in text:
        font = _font(_font_of(letter), size) or own
        if runs and runs[-1][1] is font:
            runs[-1] = (runs[-1][0] + letter, font)
        else:
            runs.append((letter, font))
    return runs


@cache
def _font_of(letter: str) -> int:
    """Return the number of the first font that has a letter; the first font if none has."""
    if letter.isascii():
        return 0
    for number in range(len(_FONTS)):
        font = _font(number, FONT_SIZE)
        # A font draws the same sign for every letter that it lacks.
        if font is not None and bytes(font.getmask(letter)) != bytes(font.getmask("\uffff")):
            return number
    return 0
