"""A frame with axes, as several pictures have it."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.pictures.drawing import LINE, Box, Label, Shape, text_width


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers, drawn over a number of pixels."""

    low: float
    high: float
    pixels: float

    @classmethod
    def over(cls, values: Sequence[float], pixels: float) -> "Axis":
        """Return an axis that holds all finite values, with a little room at both ends."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        # Halved first: the difference of two large floats may not be finite.
        room = (high / 2 - low / 2) * 0.1 or max(abs(high) * 0.05, 1e-9)
        most = sys.float_info.max
        return cls(max(low - room, -most), min(high + room, most), pixels)

    def place(self, value: float) -> float:
        """Return where a value lies, in pixels from the low end."""
        return self.pixels * ((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2))

    def ticks(self) -> list[float]:
        """Return about four round numbers in the range."""
        span = self.high / 2 - self.low / 2
        power = 10.0 ** math.floor(math.log10(span / 2))
        step = next(power * size for size in (1, 2, 5, 10, 20) if span / (power * size) <= 2.5)
        first = math.ceil(self.low / step)
        return [
            (first + number) * step for number in range(8) if (first + number) * step <= self.high
        ]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a chart lies in a picture, with its two axes."""

    left: float
    top: float
    across: Axis
    up: Axis

    @property
    def bottom(self) -> float:
        """Lower edge, in pixels."""
        return self.top + self.up.pixels

    @property
    def right(self) -> float:
        """Right edge, in pixels."""
        return self.left + self.across.pixels

    def x(self, value: float) -> float:
        """Return the column of a value."""
        return self.left + self.across.place(value)

    def y(self, value: float) -> float:
        """Return the row of a value."""
        return self.bottom - self.up.place(value)

    def grid(self) -> list[Shape]:
        """Return lines and numbers of both axes."""
        shapes: list[Shape] = []
        free = -math.inf
        for value in self.across.ticks():
            x, text = self.x(value), as_tick(value)
            shapes.append(Box(x, self.top, 1, self.up.pixels, "grid"))
            half = text_width(text) / 2
            # Long numbers would run into each other.
            if x - half > free:
                shapes.append(Label(x, self.bottom + 3, text, "muted", "middle"))
                free = x + half + 6
        for value in self.up.ticks():
            y, text = self.y(value), as_tick(value)
            shapes.append(Box(self.left, y, self.across.pixels, 1, "grid"))
            shapes.append(Label(self.left - 6, y - LINE / 2, text, "muted", "right"))
        return shapes


def as_tick(value: float) -> str:
    """Return a number as an axis shows it."""
    # 0.30000000000000004 is no round number, and -0 is none at all.
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
