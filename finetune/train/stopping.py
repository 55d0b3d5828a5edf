"""Stops on request: a signal ends a run at a point from which it can go on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune.errors import StoppedError
from finetune.process import STOP_SIGNALS, Interrupted, handled_by


class StopRequest(BaseException):
    """Raised at a safe point after a signal. No error: nobody but the loop answers it."""


class Stop:
    """Remembers that a signal has asked the run to stop.

    Only the process and the thread that listen answer: processes of a loader inherit the handler.
    """

    __slots__ = ("_pid", "requested")

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        """The signal that came, if one has."""
        self._pid = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first signal as a request; let a second one end the process at once.

        Handlers are set in the main thread alone: elsewhere Python allows none.
        """
        self.requested, self._pid = None, os.getpid()
        with handled_by(self._note):
            yield

    def answer(self) -> None:
        """Raise `StopRequest` if a signal has come. Called where the run could go on from."""
        if self.requested is not None:
            raise StopRequest

    def error(self, step: int, run: Path) -> StoppedError:
        """Return what tells that a run was stopped after a step."""
        assert self.requested is not None
        return StoppedError(
            f"stopped by {self.requested.name} after step {step}",
            hint="the same command goes on from there",
            where=str(run),
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.requested is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)
        self.requested = signal.Signals(number)


@contextmanager
def leaving_at_once(can_go_on: Callable[[], bool]) -> Iterator[None]:
    """Leave the block on a signal: there is nothing to save yet.

    A second signal ends the process at once: what is being imported may have caught the first one.

    Args:
        can_go_on: Tells whether the same command would go on from a checkpoint.

    Raises:
        StoppedError: a signal came, and the same command goes on.
        Interrupted: a signal came, and there is nothing to go on from.
    """
    pid = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        for one in STOP_SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        if os.getpid() != pid:
            os.kill(os.getpid(), number)
        # No `Exception`: libraries that try one import after another would pass over it.
        raise Interrupted(number)

    try:
        with handled_by(leave):
            yield
    except Interrupted as end:
        if not can_go_on():
            raise
        raise StoppedError(
            f"{end} before the first step; nothing was written",
            hint="the same command goes on from the newest checkpoint",
        ) from None
