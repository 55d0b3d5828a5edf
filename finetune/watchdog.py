"""Ends what hangs, and shows where: a run, or a process that prepares its batches."""

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
