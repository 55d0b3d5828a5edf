"""Show progress on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from finetune.streams import unfailing
from finetune.terminal import Terminal
from finetune.tracking.tracker import PLACE, WEIGHTS_STEP, Tracker
from finetune.visible import one_line

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 30.0
_WIDTH_OF_PLAIN_TABLES = 120


class Console(Tracker):
    """Shows how far a run is: call `begin`, then `scalars` at each logged step, then `close`.

    On a terminal it draws a bar a few times a second, with evaluations as lines above it.
    Elsewhere it prints a line for each evaluation, each tenth of the run, and every 30 s. Other
    steps cost one look at the clock.

    Args:
        stream: Stream to write to; standard error if left out. If it is closed, full or no longer
            read, the run goes on.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Terminal(unfailing(stream or sys.stderr))
        if not self._console.is_interactive:
            self._console.width = _WIDTH_OF_PLAIN_TABLES
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._tenth = 0
        self._shown_at = 0.0
        self._latest: tuple[int, Mapping[str, float | str]] | None = None

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Start showing a run of `total_steps` optimizer steps, `step` of which are done."""
        self.close()
        self._total = total_steps
        self._tenth = _tenths(step, total_steps)
        self._shown_at = time.monotonic()
        self._latest = None
        if self._console.is_interactive:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task("", total=total_steps, completed=step)
            self._bar.start()

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show the figures of one step if a new line or drawing is due."""
        # The number of a phase says little to a person; its name is in the lines that follow.
        if any(tag.startswith("freeze/") for tag in values):
            return
        if not any(tag.startswith("train/") for tag in values):
            figures = [f"{tag} {_figure(values[tag])}" for tag in values if tag not in PLACE]
            if WEIGHTS_STEP in values:
                # They may be of an earlier step: the present one would mislead.
                of = f"test, by the weights of step {values[WEIGHTS_STEP]}:"
                self.message("  ".join((of, *figures)))
                return
            self._line(step, _place(values), *figures)
            return
        self._latest = (step, values)
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown_at >= _BAR_INTERVAL_S:
                self._shown_at = now
                self._draw(self._bar, step, values)
        # In a log file a line per step would hide what matters.
        elif now - self._shown_at >= _LINE_INTERVAL_S or self._tenth_is_over(step):
            self._shown_at = now
            self._line(step, _summary(values))

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.tell(text)

    def table(self, renderable: rich.console.RenderableType) -> None:
        """Print a table or anything else that rich renders."""
        self._console.print(renderable)

    def close(self) -> None:
        """Draw the bar a last time and stop it; it stays on the screen."""
        if self._bar is None:
            return
        if self._latest is not None:
            self._draw(self._bar, *self._latest)
        self._bar.stop()
        self._bar = None

    def _draw(self, bar: Progress, step: int, values: Mapping[str, float | str]) -> None:
        """Draw the bar with the figures of a step."""
        bar.update(self._task, completed=step, description=one_line(_summary(values)))
        bar.refresh()

    def _line(self, step: int, *parts: str) -> None:
        """Print a line that begins with the step."""
        place = f"step {step}/{self._total}" if self._total else f"step {step}"
        self.message("  ".join(part for part in (place, *parts) if part))

    def _tenth_is_over(self, step: int) -> bool:
        """Tell whether the run has passed another tenth since the last call."""
        before, self._tenth = self._tenth, _tenths(step, self._total)
        return self._tenth > before


def _bar(console: rich.console.Console) -> Progress:
    """Return a bar that is drawn only on demand: rich's own drawing thread would slow the loop."""
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        # redirected, standard output would appear on standard error, with the bar
        redirect_stdout=False,
    )


def _place(values: Mapping[str, float | str]) -> str:
    """Return phase and epoch as text, as far as they are given."""
    parts = [str(values["phase"])] if "phase" in values else []
    if "epoch" in values:
        parts.append(f"epoch {_figure(values['epoch'])}")
    return "  ".join(parts)


def _summary(values: Mapping[str, float | str]) -> str:
    """Return what fits beside a bar as text: phase, epoch, loss and the first learning rate."""
    parts = [_place(values)]
    if "train/loss" in values:
        parts.append(f"loss {_figure(values['train/loss'])}")
    rate = next((value for tag, value in values.items() if tag.startswith("train/lr/")), None)
    if rate is not None:
        parts.append(f"lr {_figure(rate)}")
    return "  ".join(part for part in parts if part)


def _figure(value: float | str) -> str:
    """Return a value as text with four significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _tenths(step: int, total: int) -> int:
    """Return how many tenths of the run are over at a step."""
    return 10 * step // total if total else 0
