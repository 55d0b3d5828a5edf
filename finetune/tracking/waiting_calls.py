"""Calls that wait for a tracker that is slower than the run: so many, and no more."""

from collections import deque
from collections.abc import Callable
from threading import Condition

from finetune.tracking.tracker import Tracker

Job = Callable[[Tracker], None]
"""A call of a tracker that is made later, or by another thread."""

MOST, MOST_BYTES = 20_000, 256 * 2**20
"""Calls that wait, and bytes of their pictures: a server that hangs must not fill the memory."""


class WaitingCalls:
    """A queue between the run and the thread of a tracker; what has no room is counted."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._jobs: deque[tuple[Job | None, int]] = deque()
        self._bytes = 0
        self._is_open = True
        self._changed = Condition()
        self.left_out = 0
        """Calls that had no room."""

    def put(self, job: Job | None, size: int = 0, *, is_needed: bool = False) -> None:
        """Add a call; None ends the queue.

        Args:
            job: The call.
            size: Bytes of memory that it keeps.
            is_needed: Whether it is added in any case, as what ends a run is.
        """
        with self._changed:
            if not self._is_open:
                return
            is_full = len(self._jobs) >= self._most or self._bytes + size > self._most_bytes
            # Counted, not waited for: the run must not become as slow as a server.
            if is_full and not is_needed:
                self.left_out += 1
                return
            self._jobs.append((job, size))
            self._bytes += size
            self._changed.notify()

    def get(self) -> Job | None:
        """Wait for the next call, take it out and return it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            job, size = self._jobs.popleft()
            self._bytes -= size
            return job

    def refuse(self) -> None:
        """Drop all calls, and take no more: nobody asks for them."""
        with self._changed:
            self._is_open = False
            self._jobs.clear()
            self._bytes = 0
