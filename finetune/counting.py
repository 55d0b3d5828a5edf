"""Lines on standard error while something long is read or made: what is done, and time left."""

import sys
import time

from finetune.streams import unfailing
from finetune.visible import tell

_FIRST_S, _NEXT_S = 1.0, 10.0


class Counting:
    """Tells how far a task is: a line after the first second, and then every ten seconds.

    Args:
        what: What is done, such as `reading data.csv`.
        unit: What is counted, such as `rows`.
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._began = time.monotonic()
        self._due = self._began + _FIRST_S

    def at(self, count: int, share: float | None = None) -> None:
        """Print a line if it is time.

        Args:
            count: How many are done.
            share: Which part of all that is, 0 to 1; None where nobody knows.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _NEXT_S
        left = ""
        if share is not None and 0 < share < 1:
            seconds = (now - self._began) * (1 - share) / share
            left = f", {share:.0%}, about {seconds:,.0f} s left"
        tell(f"{self._what}: {count:,} {self._unit}{left}", unfailing(sys.stderr))
