"""End a process that hangs, a run or a data worker, and print where it hangs."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EXIT_CODE = 1
_LOOKS = 10
"""How many times within its timeout the watchdog checks for a beat."""
_LONGEST_INTERVAL_S = 60.0
_LONGEST_TELLING_S = 10.0
"""Most seconds for printing the stacks: into a pipe that nobody reads it would take forever."""


class Watchdog:
    """Ends a process that makes no progress: prints the stack of every thread and exits with 1.

    A thread of its own watches, so it notices code that waits or sleeps, but not native code that
    never lets other threads run. (The timer of `faulthandler` would notice that too, but a process
    forked while it runs waits for it forever.)

    Time during which that thread did not run is not counted: the whole process was stopped
    (Ctrl-Z, SIGSTOP) or the machine slept.

    Args:
        timeout_s: Seconds without a beat after which the process counts as hung; None never ends
            it.
    """

    __slots__ = ("_beats", "_timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._beats = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs; without a timeout do nothing."""
        if self._timeout_s is None:
            yield
            return
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
        """Report progress: the timeout starts anew."""
        self._beats += 1

    def _watch(self, timeout_s: float, is_over: threading.Event) -> None:
        """End the process if the block hangs, or if the watching itself fails."""
        # True from the start: if the watching fails, the process must not run on unwatched
        is_hung = True
        try:
            is_hung = self._comes_to_hang(timeout_s, is_over)
            if is_hung:
                _tell(f"no progress for {timeout_s:g} s, ends with its stacks:")
        finally:
            if is_hung:
                # `sys.exit` would only end this thread; `os._exit` waits for nothing that hangs.
                os._exit(_EXIT_CODE)

    def _comes_to_hang(self, timeout_s: float, is_over: threading.Event) -> bool:
        """Wait until the block hangs and return True; return False if it ends before."""
        interval_s = min(timeout_s / _LOOKS, _LONGEST_INTERVAL_S)
        seen, idle_s, looked_at = self._beats, 0.0, time.monotonic()
        while idle_s <= timeout_s:
            if is_over.wait(interval_s):
                return False
            now = time.monotonic()
            # A longer gap than two intervals was a pause, or a machine too busy to judge by.
            idle_s += min(now - looked_at, 2 * interval_s)
            looked_at = now
            if self._beats != seen:
                seen, idle_s = self._beats, 0.0
        return True


def _tell(text: str) -> None:
    """Print a line and all stacks, in a thread that is abandoned if it takes too long."""

    def tell() -> None:
        try:
            print(text, file=sys.stderr)
            sys.stderr.flush()
        finally:
            # By number: there may be no `sys.stderr`, or one without a file.
            faulthandler.dump_traceback(file=_standard_error(), all_threads=True)

    teller = threading.Thread(target=tell, name="watchdog tells", daemon=True)
    teller.start()
    teller.join(_LONGEST_TELLING_S)


def _standard_error() -> int:
    """Return the descriptor of standard error, or 2 if `sys.stderr` has none."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2
