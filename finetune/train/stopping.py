"""Stops on request: signals end a run at a safe point, a hung one ends with its stacks."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune.errors import StoppedError

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
"""Requests to stop. Windows has no SIGUSR1."""


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


class Watchdog:
    """Ends a process that hangs: prints the stack of every thread, then exits with code 1.

    Python's own `faulthandler` does it, from a thread that needs no lock of the interpreter.

    Args:
        timeout_s: Seconds without a beat after which a run counts as hung; None to wait forever.
    """

    __slots__ = ("_armed_at", "_timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._armed_at = float("-inf")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch over the block."""
        self.beat()
        try:
            yield
        finally:
            if self._timeout_s is not None:
                faulthandler.cancel_dump_traceback_later()
                self._armed_at = float("-inf")

    def beat(self) -> None:
        """Tell that the run is alive. Arming starts a thread, so it is not done at every beat."""
        now = time.monotonic()
        if self._timeout_s is not None and now - self._armed_at > self._timeout_s / 10:
            faulthandler.dump_traceback_later(self._timeout_s * 1.1, exit=True)
            self._armed_at = now


@contextmanager
def _handled_by(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
