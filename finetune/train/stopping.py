"""Stops on request: a signal ends a run at a point from which it can go on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune.data.loader import STOP_SIGNALS
from finetune.errors import StoppedError


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
        with _handled_by(self._note):
            yield

    def answer(self) -> None:
        """Raise `StopRequest` if a signal has come. Called where the run could go on from."""
        if self.requested is not None:
            raise StopRequest

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.requested is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)
        self.requested = signal.Signals(number)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Leave the block with `StoppedError` on a signal: there is nothing to save yet."""
    pid = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            name = signal.Signals(number).name
            raise StoppedError(f"stopped by {name} before the first step; nothing was written")

    with _handled_by(leave):
        yield


@contextmanager
def _handled_by(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
