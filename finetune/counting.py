"""How far long work is: reading, hashing, tokenizing, evaluating. Any part of the house says it.

On a terminal whoever draws there shows the latest of it at once. Elsewhere it is lines on standard
error: one after the first second, and then one every ten seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from finetune.streams import unfailing
from finetune.visible import tell

_FIRST_S, _NEXT_S = 1.0, 10.0

Shows = Callable[[str], None]
"""Draws what the process is busy with, as one line; an empty text for nothing."""

_shows: ContextVar[Shows | None] = ContextVar("shows", default=None)


@contextmanager
def shown_by(shows: Shows) -> Iterator[None]:
    """Let `shows` draw what is said in the block, in place of lines on standard error."""
    token = _shows.set(shows)
    try:
        yield
    finally:
        _shows.reset(token)


def doing(what: str) -> None:
    """Show what the process is busy with where somebody draws it; an empty text for nothing."""
    if (shows := _shows.get()) is not None:
        shows(what)


class Counting:
    """Tells how far a task is.

    Args:
        what: What is done, such as `reading data.csv`.
        unit: What is counted, such as `rows`.
        is_logged: Whether it is told as lines where nobody draws.
    """

    def __init__(self, what: str, unit: str, *, is_logged: bool = True) -> None:
        self._what, self._unit, self._is_logged = what, unit, is_logged
        self._began = time.monotonic()
        self._due = self._began + _FIRST_S

    def at(self, count: int, share: float | None = None) -> None:
        """Tell how far the task is, if it is time.

        Args:
            count: How many are done.
            share: Which part of all that is, 0 to 1; None where nobody knows.
        """
        if (shows := _shows.get()) is not None:
            shows(self._told(count, share))
            return
        now = time.monotonic()
        # "0 rows" in place of a line would read like a result.
        if now < self._due or not self._is_logged or not count:
            return
        self._due = now + _NEXT_S
        tell(self._told(count, share), unfailing(sys.stderr))

    def _told(self, count: int, share: float | None) -> str:
        left = ""
        if share is not None and 0 < share < 1:
            seconds = (time.monotonic() - self._began) * (1 - share) / share
            left = f", {share:.0%}, about {seconds:,.0f} s left"
        return f"{self._what}: {count:,} {self._unit}{left}"
