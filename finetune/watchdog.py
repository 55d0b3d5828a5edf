"""Ends what hangs, and shows where: a run, or a process that prepares its batches."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EXIT_CODE = 1


class Watchdog:
    """Ends a process that makes no progress: prints the stack of every thread, then exits with 1.

    The watching is done by a thread of its own, so it sees what waits or sleeps, but not code
    below Python that never lets other threads run. (The timer of `faulthandler` would see that
    too, but a process forked while it runs waits for it forever.)

    Args:
        timeout_s: Seconds without a beat after which a process counts as hung; None to wait
            forever.
    """

    __slots__ = ("_last_beat", "_timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._last_beat = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch over the block."""
        if self._timeout_s is None:
            yield
            return
        self.beat()
        is_over = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(self._timeout_s, is_over), name="watchdog", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def beat(self) -> None:
        """Tell that there is progress."""
        self._last_beat = time.monotonic()

    def _watch(self, timeout_s: float, is_over: threading.Event) -> None:
        while not is_over.wait(timeout_s / 10):
            if time.monotonic() - self._last_beat > timeout_s:
                print(f"no progress for {timeout_s:g} s, ends with its stacks:", file=sys.stderr)
                sys.stderr.flush()
                faulthandler.dump_traceback(all_threads=True)
                os._exit(_EXIT_CODE)
