"""Show progress on standard error: a live view on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

import rich.console

from finetune.counting import shown_by
from finetune.streams import unfailing
from finetune.terminal import Terminal
from finetune.tracking.live_view import LiveView, Standing
from finetune.tracking.tracker import OF_PHASES, PLACE, WEIGHTS_STEP, Tracker

_LINE_INTERVAL_S = 30.0
_WIDTH_OF_PLAIN_TABLES = 120


class Console(Tracker):
    """Shows how far a run is: call `begin`, then `scalars` at each logged step, then `close`.

    On a terminal it draws a live view, with evaluations as lines above it. Elsewhere it prints a
    line for each evaluation, each tenth of the run, and every 30 s. Other steps cost one look at
    the clock.

    Args:
        stream: Stream to write to; standard error if left out. If it is closed, full or no longer
            read, the run goes on.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Terminal(unfailing(stream or sys.stderr))
        if not self._console.is_interactive:
            # rich takes 80 columns where there is no terminal, and would wrap tables.
            self._console.width = _WIDTH_OF_PLAIN_TABLES
        self._view: LiveView | None = None
        self._total = 0
        self._tenth = 0
        self._shown_at = 0.0
        self._recorded = 0

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Start showing a run of `total_steps` optimizer steps, `step` of which are done."""
        # A run that goes back to a checkpoint begins again, and its view so far must not stay.
        self.close()
        self._total = total_steps
        self._tenth = _tenths(step, total_steps)
        self._shown_at = time.monotonic()
        if self._console.is_interactive:
            self._view = LiveView(self._console, Standing(total_steps, step, ends=total_steps))

    def phase_begins(self, name: str, ends: int, following: Sequence[str]) -> None:
        """Show the present phase, the step at which it ends at the latest, and what comes then."""
        if self._view is not None:
            standing = self._view.standing
            standing.phase, standing.ends, standing.following = name, ends, following
            # Steps of other phases say nothing of how fast these are.
            standing.moments.clear()

    def step_is_done(self, step: int, samples: int, recorded: int) -> None:
        """Show that a step is done.

        Args:
            step: Steps done so far.
            samples: Samples of a step.
            recorded: Samples that the activation cache has stored in the run so far.
        """
        if self._view is None:
            return
        standing = self._view.standing
        standing.step, standing.samples_per_step = step, samples
        standing.is_filling, self._recorded = recorded > self._recorded, recorded
        standing.moments.append(time.monotonic())
        self._view.draw(at_once=False)

    @contextmanager
    def shows_activity(self) -> Iterator[None]:
        """Show in the block what the run does besides training steps."""
        with shown_by(self._activity):
            yield

    def _activity(self, what: str) -> None:
        if self._view is not None:
            self._view.standing.activity = what
            self._view.draw(at_once=False)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show the figures of one step if a new line or drawing is due."""
        # The number of a phase says little to a person; its name is in the lines that follow.
        if any(tag in OF_PHASES for tag in values):
            return
        if self._view is not None:
            self._view.takes(values)
        if not any(tag.startswith("train/") for tag in values):
            figures = [f"{tag} {_figure(values[tag])}" for tag in values if tag not in PLACE]
            if WEIGHTS_STEP in values:
                # They may be of an earlier step: the present one would mislead.
                of = f"test, by the weights of step {values[WEIGHTS_STEP]}:"
                self.message("  ".join((of, *figures)))
                return
            self._line(step, _place(values), *figures)
            return
        # In a log file a line per step would hide what matters.
        now = time.monotonic()
        if self._view is None and (
            now - self._shown_at >= _LINE_INTERVAL_S or self._tenth_is_over(step)
        ):
            self._shown_at = now
            self._line(step, _summary(values))

    def message(self, text: str) -> None:
        """Print a line, above the live view if there is one."""
        self._console.tell(text)

    def table(self, renderable: rich.console.RenderableType) -> None:
        """Print a table or anything else that rich renders."""
        self._console.print(renderable)

    def close(self) -> None:
        """Remove the live view, if there is one."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def _line(self, step: int, *parts: str) -> None:
        """Print a line that begins with the step."""
        place = f"step {step}/{self._total}" if self._total else f"step {step}"
        self.message("  ".join(part for part in (place, *parts) if part))

    def _tenth_is_over(self, step: int) -> bool:
        """Tell whether the run has passed another tenth since the last call."""
        before, self._tenth = self._tenth, _tenths(step, self._total)
        return self._tenth > before


def _place(values: Mapping[str, float | str]) -> str:
    """Return phase and epoch as text, as far as they are given."""
    parts = [str(values["phase"])] if "phase" in values else []
    if "epoch" in values:
        parts.append(f"epoch {_figure(values['epoch'])}")
    return "  ".join(parts)


def _summary(values: Mapping[str, float | str]) -> str:
    """Return the figures of a step in short: phase, epoch, loss and the first learning rate."""
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
