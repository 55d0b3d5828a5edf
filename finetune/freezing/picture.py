"""The freeze map as a picture: a row per block, optimizer steps from left to right."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.freezing.plan import Plan
from finetune.freezing.report import fold, next_block
from finetune.visible import one_line

COLOURS = {"frozen": "#c3d2e6", "trained": "#dd7128", "mixed": "#edb68c"}
"""Colour of each state, told apart in grey as well."""
_WORDS = {"frozen": "frozen", "trained": "trained", "mixed": "trained in part"}
_FONT_SIZE, _MAP_WIDTH, _ROW_HEIGHT, _LINE_HEIGHT, _MARGIN = 16, 400, 22, 22, 8
"""Pixels. TensorBoard shows a picture 340 wide until one clicks on it: letters must be large."""
_MOST_LABEL = 220
"""Pixels; a longer name loses its beginning."""
_MOST_ROWS = 40
"""With more, blocks that always fare alike share a row."""

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the map."""

    name: str
    states: tuple[str, ...]
    """Its state in each phase that has begun."""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Where things stand on the picture."""

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
        """Write a line."""
        self.draw.text((x, y), one_line(text), "black", self.font, anchor=anchor)

    def bar(self, first: int, stop: int, y: int, height: int, colour: str) -> None:
        """Fill a stretch of steps, by a pixel at least; one that is empty is left out."""
        if first < stop:
            left = self.x(first)
            box = (left, y, max(left, self.x(stop) - 1), y + height - 1)
            self.draw.rectangle(box, fill=colour)


def freeze_picture(
    plan: Plan, began: Sequence[int], total_steps: int, now: int | None = None
) -> np.ndarray:
    """Draw the freeze map: what was frozen and what trained at which step.

    Args:
        plan: The phases.
        began: First step of each phase that has begun.
        total_steps: Steps of the whole run, the width of the map.
        now: Steps done; all if left out. What comes after them is drawn as a thin line, as
            it will be if the present phase lasts to the end.

    Returns:
        Pixels `(H, W, 3)`, bytes.
    """
    now = total_steps if now is None else now
    font, rows = ImageFont.load_default(_FONT_SIZE), _rows(plan, len(began))
    names = [_fitting(one_line(row.name), _MOST_LABEL, font) for row in rows]
    left = 2 * _MARGIN + max(int(font.getlength(name)) for name in names)
    top = _MARGIN + _LINE_HEIGHT
    bottom = top + _ROW_HEIGHT * len(rows)
    lines = 3 + len(plan.phases)
    size = (left + _MAP_WIDTH + 2 * _MARGIN, bottom + _LINE_HEIGHT * lines + _MARGIN)
    image = Image.new("RGB", size, "white")
    sheet = _Sheet(ImageDraw.Draw(image), font, left, top, bottom, total_steps)
    for place, name in enumerate(names):
        sheet.text(_MARGIN, top + _ROW_HEIGHT * place + 1, name)
    _draw_map(sheet, plan, rows, began, now)
    _draw_legend(sheet, plan, began, now)
    return np.asarray(image)


def _rows(plan: Plan, begun: int) -> list[_Row]:
    maps = [fold(plan.inventory, phase.frozen) for phase in plan.phases[:begun]]
    columns = zip(*maps, strict=True)
    rows = [_Row(column[0].name, tuple(cell.state for cell in column)) for column in columns]
    if len(rows) <= _MOST_ROWS:
        return rows
    runs: list[list[_Row]] = []
    for row in rows:
        last = runs[-1][-1] if runs else None
        if last and last.states == row.states and next_block(last.name, row.name):
            runs[-1].append(row)
        else:
            runs.append([row])
    return [_Row(_name_of(run), run[0].states) for run in runs]


def _name_of(run: Sequence[_Row]) -> str:
    first, last = run[0].name, run[-1].name
    return first if len(run) == 1 else f"{first} to {last.rpartition('.')[2]}"


def _draw_map(
    sheet: _Sheet, plan: Plan, rows: Sequence[_Row], began: Sequence[int], now: int
) -> None:
    """Draw the cells, and above and below them where each phase begins."""
    for number, (start, end) in enumerate(pairwise((*began, sheet.total_steps))):
        for place, row in enumerate(rows):
            y, colour = sheet.top + _ROW_HEIGHT * place, COLOURS[row.states[number]]
            sheet.bar(start, min(end, now), y, _ROW_HEIGHT - 1, colour)
            sheet.bar(max(start, now), end, y + _ROW_HEIGHT // 2 - 2, 3, colour)
        x, width = sheet.x(start), sheet.x(end) - sheet.x(start) - 6
        sheet.draw.line((x, sheet.top - 6, x, sheet.top - 1), fill="black")
        sheet.draw.line((x, sheet.bottom, x, sheet.bottom + 3), fill="black")
        name = one_line(plan.phases[number].name)
        label = name if sheet.font.getlength(name) <= width else str(number)
        if sheet.font.getlength(label) <= width:
            sheet.text(x + 3, _MARGIN, label)
    _draw_steps(sheet, began)


def _draw_steps(sheet: _Sheet, began: Sequence[int]) -> None:
    """Write the steps at which phases began, those that do not run into one another."""
    end = sheet.left + _MAP_WIDTH
    sheet.text(end, sheet.bottom + 2, str(sheet.total_steps), "ra")
    limit = end - sheet.font.getlength(str(sheet.total_steps)) - 8
    free = 0.0
    for step in began:
        label, x = str(step) if step else "step 0", sheet.x(step)
        width = sheet.font.getlength(label)
        if x >= free and x + width <= limit:
            sheet.text(x, sheet.bottom + 2, label)
            free = x + width + 8


def _draw_legend(sheet: _Sheet, plan: Plan, began: Sequence[int], now: int) -> None:
    """Explain the colours, and name every phase with its steps."""
    x, y = _MARGIN, sheet.bottom + _LINE_HEIGHT + 8
    for state, colour in COLOURS.items():
        sheet.draw.rectangle((x, y + 3, x + 14, y + 17), fill=colour)
        sheet.text(x + 19, y, _WORDS[state])
        x += 38 + int(sheet.font.getlength(_WORDS[state]))
    if now < sheet.total_steps:
        sheet.text(x, y, "thin: not yet done")
    ends = [*began[1:], now]
    for number, phase in enumerate(plan.phases):
        y += _LINE_HEIGHT
        when = "not begun"
        if number < len(began):
            when = f"steps {began[number]} to {ends[number]}"
        if number == len(began) - 1 and now < sheet.total_steps:
            when = f"since step {began[number]}"
        sheet.text(_MARGIN, y, f"phase {number}: {phase.name}, {when}")


def _fitting(text: str, width: int, font: _Font) -> str:
    """Return a name, without its beginning where it is too long: its end tells blocks apart."""
    if font.getlength(text) <= width:
        return text
    while text and (font.getlength(f"...{text}") > width or text[0] == "."):
        text = text[1:]
    return f"...{text}"
