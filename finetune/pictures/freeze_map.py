"""Draw the freeze map: a row per block, optimizer steps from left to right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetune.pictures.drawing import (
    LIGHT,
    LINE,
    Box,
    Label,
    Picture,
    Shape,
    fitting,
    text_width,
)
from finetune.visible import one_line

COLOURS = {state: LIGHT[state] for state in ("frozen", "trained", "mixed")}
"""Colour of each state; they differ in grey as well."""
_WORDS = {"frozen": "frozen", "trained": "trained", "mixed": "trained in part"}
_MAP_WIDTH, _ROW_HEIGHT, _MARGIN = 400, 22, 8
_MOST_LABEL = 220
"""Pixels; of a longer name the beginning is cut off."""

_MOST_LISTED = 40
"""Number of phases to name below the map; the rest are counted, as a policy may make hundreds."""


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
    notes: Sequence[str] = ()
    """For each phase, what the legend says below its name: rates, and what ends it."""


@dataclass(frozen=True, slots=True)
class _Map:
    """Where the map lies in the picture."""

    left: int
    top: int
    bottom: int
    total_steps: int

    def x(self, step: int) -> int:
        """Return the column of a step."""
        return self.left + round(_MAP_WIDTH * step / max(1, self.total_steps))

    def bar(self, first: int, stop: int, y: int, height: int, colour: str) -> list[Shape]:
        """Return a range of steps, at least one pixel wide; nothing for an empty range."""
        if first >= stop:
            return []
        left = self.x(first)
        return [Box(left, y, max(1, self.x(stop) - left), height, colour)]


def freeze_timeline(shown: FreezeMap) -> Picture:
    """Return the drawing of which blocks were frozen, by step, as shapes."""
    names = [fitting(name, _MOST_LABEL, keeps_end=True) for name in shown.rows]
    left = 2 * _MARGIN + max(int(text_width(name)) for name in names)
    top = _MARGIN + LINE
    place = _Map(left, top, top + _ROW_HEIGHT * len(names), shown.total_steps)
    width = left + _MAP_WIDTH + 2 * _MARGIN
    shapes: list[Shape] = [
        Label(_MARGIN, top + _ROW_HEIGHT * row + 1, name) for row, name in enumerate(names)
    ]
    shapes += _cells(place, shown)
    shapes += _steps(place, shown.began)
    legend, bottom = _legend(place, shown, width)
    title = f"Freeze map of {len(names)} blocks over {shown.total_steps} steps"
    return Picture(width, bottom + _MARGIN, [*shapes, *legend], title)


def _cells(place: _Map, shown: FreezeMap) -> list[Shape]:
    """Return the cells, with marks above and below them where each phase begins."""
    shapes: list[Shape] = []
    for number, (start, end) in enumerate(pairwise((*shown.began, shown.total_steps))):
        for row, states in enumerate(shown.rows.values()):
            y, colour = place.top + _ROW_HEIGHT * row, states[number]
            shapes += place.bar(start, min(end, shown.now), y, _ROW_HEIGHT - 1, colour)
            shapes += place.bar(max(start, shown.now), end, y + _ROW_HEIGHT // 2 - 2, 3, colour)
        x, width = place.x(start), place.x(end) - place.x(start) - 6
        shapes += [Box(x, place.top - 6, 1, 5, "ink"), Box(x, place.bottom, 1, 4, "ink")]
        name = one_line(shown.phases[number])
        # A number is enough: the legend below gives its name.
        label = name if text_width(name) <= width else str(number)
        if text_width(label) <= width:
            shapes.append(Label(x + 3, _MARGIN, label))
    return shapes


def _steps(place: _Map, began: Sequence[int]) -> list[Shape]:
    """Return the steps at which phases began, without those that would overlap."""
    end, y = place.left + _MAP_WIDTH, place.bottom + 2
    # The last step is always shown, so its room is taken first.
    shapes: list[Shape] = [Label(end, y, str(place.total_steps), align="right")]
    limit = end - text_width(str(place.total_steps)) - 8
    free = 0.0
    for step in began:
        label, x = str(step) if step else "step 0", place.x(step)
        width = text_width(label)
        if x >= free and x + width <= limit:
            shapes.append(Label(x, y, label))
            free = x + width + 8
    return shapes


def _legend(place: _Map, shown: FreezeMap, width: int) -> tuple[list[Shape], int]:
    """Return colours and phases with their steps, and the lower edge of it all."""
    x, y = _MARGIN, place.bottom + LINE + 8
    shapes: list[Shape] = []
    for state, words in _WORDS.items():
        shapes += [Box(x, y + 3, 14, 14, state), Label(x + 19, y, words)]
        x += 38 + int(text_width(words))
    if shown.now < shown.total_steps:
        shapes.append(Label(x, y, "thin: not yet done"))
    for number, name in enumerate(shown.phases):
        y += LINE
        if number == _MOST_LISTED:
            shapes.append(Label(_MARGIN, y, f"and {len(shown.phases) - number} more"))
            break
        text = f"phase {number}: {one_line(name)}, {_when(shown, number)}"
        shapes.append(Label(_MARGIN, y, fitting(text, width - 2 * _MARGIN)))
        if number < len(shown.notes) and shown.notes[number]:
            y += LINE
            note = fitting(shown.notes[number], width - 4 * _MARGIN)
            shapes.append(Label(3 * _MARGIN, y, note, "muted"))
    return shapes, y + LINE


def _when(shown: FreezeMap, number: int) -> str:
    """Return the steps of a phase as words."""
    if number >= len(shown.began):
        return "not begun"
    if number == len(shown.began) - 1 and shown.now < shown.total_steps:
        return f"since step {shown.began[number]}"
    end = [*shown.began[1:], shown.now][number]
    return f"steps {shown.began[number]} to {end}"
