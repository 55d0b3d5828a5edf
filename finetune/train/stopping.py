"""Stop a run on a signal, at a point from which it can be resumed."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune.errors import StoppedError
from finetune.process import (
    STOP_SIGNALS,
    answered,
    end_if_asked,
    handled_by,
    interrupt,
    unanswered,
)

_IN_ORDER = sorted(STOP_SIGNALS)
_SAME_REQUEST_S = 1.0
"""Signals so soon after the first are the same request: a terminal sends Ctrl-C to a whole group of
processes, and a launcher among them passes it on."""


class StopRequest(BaseException):
    """Raised at a safe point after a signal. It is no `Exception`, so only the loop catches it."""


class Stop:
    """Remembers that a signal has asked the run to stop.

    Only the process that listens takes notice: worker processes inherit its handler.

    Args:
        is_several: Whether the run has several processes. Then a signal to one of them counts once
            all have heard of it, so that all stop after the same step.
    """

    __slots__ = ("_at", "_heard", "_is_several", "_pid", "requested")

    def __init__(self, *, is_several: bool = False) -> None:
        self.requested: signal.Signals | None = None
        """The first signal; None before it."""
        self._heard: signal.Signals | None = None
        """The first signal to this process."""
        self._is_several = is_several
        self._pid, self._at = 0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first signal as a request; let one a second or more later end the process.

        Handlers are set in the main thread only: Python allows none in others.
        """
        self.requested, self._heard, self._pid = None, None, os.getpid()
        with handled_by(self._note):
            # One that came just before, and that a library has caught.
            if (end := unanswered()) is not None:
                answered()
                self._note(end.number, None)
            yield

    def answer(self) -> None:
        """Raise `StopRequest` if a signal has come. Call it where a resumed run could continue."""
        if self.requested is not None:
            raise StopRequest

    def told(self) -> list[float]:
        """Return for each signal whether it has come to this process, as 0 or 1."""
        return [float(self._heard == number) for number in _IN_ORDER]

    def agree(self, counts: Sequence[float]) -> None:
        """Take note of the signals that the processes of the run have got.

        Args:
            counts: How many processes have got each signal, in the order of `told`.
        """
        came = [number for number, count in zip(_IN_ORDER, counts, strict=True) if count]
        if came and self.requested is None:
            self.requested = came[0]

    def error(self, step: int, run: Path) -> StoppedError:
        """Return the error for a run that a signal has stopped after a step."""
        assert self.requested is not None
        return StoppedError(
            f"stopped by {self.requested.name} after step {step}",
            hint="the same command goes on from there",
            where=str(run),
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first one, let a second one end the process."""
        if os.getpid() != self._pid:
            return
        if self._heard is None:
            self._heard, self._at = signal.Signals(number), time.monotonic()
            if not self._is_several:
                self.requested = self._heard
        elif time.monotonic() - self._at > _SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)


@contextmanager
def leaving_at_once(can_go_on: Callable[[], bool]) -> Iterator[None]:
    """Leave the block on a signal: there is nothing to save yet.

    A second signal ends the process at once: a library under import may have caught the first one.

    Args:
        can_go_on: Tells whether the same command would resume from a checkpoint.

    Raises:
        StoppedError: a signal came, and the same command resumes from a checkpoint.
        Interrupted: a signal came, and there is no checkpoint.
    """
    pid = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        for one in STOP_SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        # A process that was forked meanwhile simply ends.
        if os.getpid() != pid:
            os.kill(os.getpid(), number)
        # No `Exception`: libraries that try one import after another would pass over it.
        interrupt(number)

    try:
        with handled_by(leave):
            end_if_asked()
            yield
            end_if_asked()
    except BaseException:
        # A library may have turned it into an error of its own.
        if (end := unanswered()) is None:
            raise
        answered()
        if not can_go_on():
            raise end from None
        raise StoppedError(
            f"{end} before the first step; nothing was written",
            hint="the same command goes on from the newest checkpoint",
        ) from None
