"""Draw the freeze map: a row per block, optimizer steps from left to right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.visible import one_line

COLOURS = {"frozen": "#c3d2e6", "trained": "#dd7128", "mixed": "#edb68c"}
"""Colour of each state; they differ in grey as well."""
_WORDS = {"frozen": "frozen", "trained": "trained", "mixed": "trained in part"}
_FONT_SIZE, _MAP_WIDTH, _ROW_HEIGHT, _LINE_HEIGHT, _MARGIN = 16, 400, 22, 22, 8
"""Pixels. TensorBoard first shows a picture 340 pixels wide, so letters must be large."""
_MOST_LABEL = 220
"""Pixels; of a longer name the beginning is cut off."""

_MOST_LISTED = 40
"""Number of phases to name below the map; the rest are counted, as a policy may make hundreds."""

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class FreezeMap:
    """Content of the picture, as plain data."""

    rows: Mapping[str, Sequence[str]]
    """For each row, by name: its state in each phase that has begun. States are the keys of
    `COLOURS`."""
    phases: Sequence[str]
    """The name of every phase of the plan, also of those that have not begun."""
    began: Sequence[int]
    """First step of each phase that has begun."""
    total_steps: int
    """Steps of the whole run, the width of the map."""
    now: int
    """Steps done. Later steps are drawn as a thin line, as if the present phase lasted to the
    end."""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The picture with the position of the map in it."""

    draw: ImageDraw.ImageDraw
    font: _Font
    left: int
    top: int
    bottom: int
    total_steps: int

    def x(self, step: int) -> int:
        """Return the column of a step."""
        return self.left + round(_MAP_WIDTH * step / max(1, self.total_steps))

    def text(self, x: int, y: int, text: str, anchor: str = "la") -> None:
        """Draw a text in black on one line, with line feeds and hidden characters escaped.

        Args:
            x: Horizontal position of the anchor, in pixels.
            y: Vertical position of the anchor, in pixels.
            text: The text.
            anchor: Which point of the text lies there, in Pillow's notation.
        """
        self.draw.text((x, y), one_line(text), "black", self.font, anchor=anchor)

    def bar(self, first: int, stop: int, y: int, height: int, colour: str) -> None:
        """Fill a range of steps, at least one pixel wide; draw nothing for an empty range."""
        if first < stop:
            left = self.x(first)
            box = (left, y, max(left, self.x(stop) - 1), y + height - 1)
            self.draw.rectangle(box, fill=colour)


def draw_freeze_map(shown: FreezeMap) -> np.ndarray:
    """Draw which blocks were frozen and which trained, by step.

    Returns:
        Pixels `(H, W, 3)`, uint8.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    # Names may be other people's text: hidden characters are escaped in pictures, too.
    names = [_fitting(one_line(name), _MOST_LABEL, font) for name in shown.rows]
    left = 2 * _MARGIN + max(int(font.getlength(name)) for name in names)
    top = _MARGIN + _LINE_HEIGHT
    bottom = top + _ROW_HEIGHT * len(names)
    # One line more than phases are named: it counts the rest.
    lines = 3 + min(len(shown.phases), _MOST_LISTED + 1)
    size = (left + _MAP_WIDTH + 2 * _MARGIN, bottom + _LINE_HEIGHT * lines + _MARGIN)
    image = Image.new("RGB", size, "white")
    sheet = _Sheet(ImageDraw.Draw(image), font, left, top, bottom, shown.total_steps)
    for place, name in enumerate(names):
        sheet.text(_MARGIN, top + _ROW_HEIGHT * place + 1, name)
    _draw_map(sheet, shown)
    _draw_legend(sheet, shown)
    return np.asarray(image)


def _draw_map(sheet: _Sheet, shown: FreezeMap) -> None:
    """Draw the cells, with marks above and below them where each phase begins."""
    for number, (start, end) in enumerate(pairwise((*shown.began, sheet.total_steps))):
        for place, states in enumerate(shown.rows.values()):
            y, colour = sheet.top + _ROW_HEIGHT * place, COLOURS[states[number]]
            sheet.bar(start, min(end, shown.now), y, _ROW_HEIGHT - 1, colour)
            sheet.bar(max(start, shown.now), end, y + _ROW_HEIGHT // 2 - 2, 3, colour)
        x, width = sheet.x(start), sheet.x(end) - sheet.x(start) - 6
        sheet.draw.line((x, sheet.top - 6, x, sheet.top - 1), fill="black")
        sheet.draw.line((x, sheet.bottom, x, sheet.bottom + 3), fill="black")
        name = one_line(shown.phases[number])
        # A number is enough: the legend below gives its name.
        label = name if sheet.font.getlength(name) <= width else str(number)
        if sheet.font.getlength(label) <= width:
            sheet.text(x + 3, _MARGIN, label)
    _draw_steps(sheet, shown.began)


def _draw_steps(sheet: _Sheet, began: Sequence[int]) -> None:
    """Write the steps at which phases began, without those that would overlap."""
    end = sheet.left + _MAP_WIDTH
    # The last step is always shown, so its room is taken first.
    sheet.text(end, sheet.bottom + 2, str(sheet.total_steps), "ra")
    limit = end - sheet.font.getlength(str(sheet.total_steps)) - 8
    free = 0.0
    for step in began:
        label, x = str(step) if step else "step 0", sheet.x(step)
        width = sheet.font.getlength(label)
        if x >= free and x + width <= limit:
            sheet.text(x, sheet.bottom + 2, label)
            free = x + width + 8


def _draw_legend(sheet: _Sheet, shown: FreezeMap) -> None:
    """Draw the legend: colours, and the phases with their steps."""
    began, now = shown.began, shown.now
    x, y = _MARGIN, sheet.bottom + _LINE_HEIGHT + 8
    for state, colour in COLOURS.items():
        sheet.draw.rectangle((x, y + 3, x + 14, y + 17), fill=colour)
        sheet.text(x + 19, y, _WORDS[state])
        x += 38 + int(sheet.font.getlength(_WORDS[state]))
    if now < sheet.total_steps:
        sheet.text(x, y, "thin: not yet done")
    ends = [*began[1:], now]
    for number, name in enumerate(shown.phases):
        y += _LINE_HEIGHT
        if number == _MOST_LISTED:
            sheet.text(_MARGIN, y, f"and {len(shown.phases) - number} more")
            break
        when = "not begun"
        if number < len(began):
            when = f"steps {began[number]} to {ends[number]}"
        if number == len(began) - 1 and now < sheet.total_steps:
            when = f"since step {began[number]}"
        sheet.text(_MARGIN, y, f"phase {number}: {name}, {when}")


def _fitting(text: str, width: int, font: _Font) -> str:
    """Return a name that fits the width, cut at its beginning: blocks differ in the end."""
    if font.getlength(text) <= width:
        return text
    # Not cut right before a dot, which would read as a fourth one.
    while text and (font.getlength(f"...{text}") > width or text[0] == "."):
        text = text[1:]
    return f"...{text}"
