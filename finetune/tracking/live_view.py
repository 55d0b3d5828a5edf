"""The lines at the bottom of a terminal while a run goes on: where it is, how fast, what is next.

Line by line, at most five times a second:

    120/490  ━━━━━━━╸━━━━━━━━━━━━━━━━  24 %   3.1 steps/s   0:02:01 left in head
    epoch 2.4   loss 0.3104 █▆▅▃▂▂▁   lr 0.001   99 samples/s
    evaluating validation: 64 samples, 29%, about 3 s left   then top, all
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.cells import cell_len, set_cell_size
from rich.live import Live
from rich.text import Text

from finetune.counting import shown_by
from finetune.terminal import Terminal
from finetune.visible import one_line

_INTERVAL_S = 0.2
_LOSSES = 24
"""Losses of the small curve."""
_STEPS = 200
"""Most steps whose mean time tells how fast the run is."""
_LEAST_BAR = 8
_LEVELS = "▁▂▃▄▅▆▇█"
_GAP = "   "


@dataclass(slots=True)
class Standing:
    """Where a run is: what the view draws."""

    total: int
    """Optimizer steps of the run."""
    step: int
    phase: str = ""
    ends: int = 0
    """Step at which the present phase ends, as far as that is known."""
    following: Sequence[str] = ()
    """Names of the phases after it."""
    epoch: float | None = None
    rate: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_LOSSES))
    samples_per_step: int = 0
    is_filling: bool = False
    """Whether the activation cache is being filled: later steps cost less than these."""
    activity: str = ""
    """What the run does besides training steps."""
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """When each of the latest steps of the phase ended, in seconds of the monotonic clock."""

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the latest steps, evaluations between them included; None before the second."""
        if len(self.moments) < 2:
            return None
        return (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)


def lines_of(standing: Standing, width: int, *, is_unicode: bool = True) -> list[str]:
    """Return the lines of the view, each at most `width` characters.

    Args:
        standing: Where the run is.
        width: Columns of the terminal.
        is_unicode: Whether the terminal shows more than ASCII.
    """
    at = f"{standing.step:,}/{standing.total:,}" if standing.total else f"{standing.step:,}"
    share = min(1.0, standing.step / standing.total) if standing.total else 0.0
    right = [f"{share:>4.0%}", *_pace(standing)]
    room = width - len(at) - len(_GAP) - cell_len(_joined(right)) - len(_GAP)
    bar = [_bar(share, room, is_unicode=is_unicode)] if room >= _LEAST_BAR else []
    first = _joined([at, *bar, *right])
    figures = []
    if standing.epoch is not None:
        figures.append(f"epoch {standing.epoch:.4g}")
    if standing.losses:
        curve = _curve(standing.losses) if is_unicode else ""
        figures.append(f"loss {standing.losses[-1]:.4g} {curve}".rstrip())
    if standing.rate is not None:
        figures.append(f"lr {standing.rate:.4g}")
    if standing.samples_per_step and (seconds := standing.seconds_per_step):
        figures.append(f"{standing.samples_per_step / seconds:,.3g} samples/s")
    coming = f"then {', '.join(standing.following)}" if standing.following else ""
    last = one_line(_joined([part for part in (standing.activity, coming) if part]))
    return [_cut(line, width) for line in (first, _joined(figures), last) if line]


def _pace(standing: Standing) -> list[str]:
    """Return speed, and the time left in the phase."""
    seconds = standing.seconds_per_step
    if seconds is None or seconds <= 0:
        return [f"in {one_line(standing.phase)}"] if standing.phase else []
    speed = f"{1 / seconds:.3g} steps/s" if seconds <= 1 else f"{seconds:.3g} s/step"
    left = timedelta(seconds=round(seconds * max(0, standing.ends - standing.step)))
    # Later steps are answered from the cache: nobody knows yet how much faster they are.
    bound = "at most " if standing.is_filling else ""
    place = f" in {one_line(standing.phase)}" if standing.following else ""
    return [speed, f"{bound}{left} left{place}"]


def _bar(share: float, width: int, *, is_unicode: bool) -> str:
    full, empty = ("━", "─") if is_unicode else ("#", "-")
    done = round(share * width)
    return full * done + empty * (width - done)


def _curve(values: Sequence[float]) -> str:
    """Return values as a curve of one line; what is no number leaves a gap."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _LEVELS[round((value - low) * scale)] if math.isfinite(value) else " " for value in values
    )


def _joined(parts: Sequence[str]) -> str:
    return _GAP.join(parts)


def _cut(line: str, width: int) -> str:
    # By cells, not characters: Chinese ones take two each.
    return line if cell_len(line) <= width else f"{set_cell_size(line, width - 1)}…"


@contextmanager
def waiting(console: Terminal, what: str) -> Iterator[None]:
    """Draw on a terminal, in the block, what the process is busy with, and for how long.

    Nothing is drawn elsewhere. Standard error may be written to meanwhile: its lines stand above.

    Args:
        console: Where to draw.
        what: What it is busy with at first.
    """
    if not console.is_interactive:
        yield
        return
    began = drawn_at = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        def draw(said: str) -> None:
            nonlocal drawn_at
            now = time.monotonic()
            if said and now - drawn_at >= _INTERVAL_S:
                drawn_at = now
                took = timedelta(seconds=int(now - began))
                line = _cut(one_line(f"{said}{_GAP}{took}"), console.width)
                live.update(Text(line, no_wrap=True), refresh=True)

        live.update(Text(_cut(one_line(what), console.width), no_wrap=True), refresh=True)
        with shown_by(draw):
            yield


class LiveView:
    """Draws where a run is; nothing is drawn between two calls, so no thread slows the loop.

    Args:
        console: A terminal.
        standing: Where the run is; the caller may change it before `draw`.
    """

    def __init__(self, console: Terminal, standing: Standing) -> None:
        self.standing = standing
        self._console = console
        self._drawn_at = -math.inf
        # redirected, standard output would appear on standard error, with the view
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._live.start()
        self.draw()

    def draw(self, *, at_once: bool = True) -> None:
        """Draw the view; unless `at_once`, only if the last drawing is a fifth of a second old."""
        now = time.monotonic()
        if not at_once and now - self._drawn_at < _INTERVAL_S:
            return
        self._drawn_at = now
        is_unicode = self._console.encoding.startswith("utf")
        lines = lines_of(self.standing, self._console.width, is_unicode=is_unicode)
        self._live.update(Text("\n".join(lines), no_wrap=True), refresh=True)

    def takes(self, values: Mapping[str, float | str]) -> None:
        """Take the figures of a step that is logged."""
        standing = self.standing
        if "phase" in values:
            standing.phase = str(values["phase"])
        if isinstance(epoch := values.get("epoch"), float | int):
            standing.epoch = epoch
        if isinstance(loss := values.get("train/loss"), float | int):
            standing.losses.append(loss)
        rates = [value for tag, value in values.items() if tag.startswith("train/lr/")]
        if rates and isinstance(rates[0], float | int):
            standing.rate = rates[0]

    def close(self) -> None:
        """Remove the view from the terminal; the lines above it stay."""
        self._live.stop()
