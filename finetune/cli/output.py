"""Keep standard output for results, and write sizes as people read them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


@contextmanager
def results() -> Iterator[TextIO]:
    """Yield standard output for a verb's own results.

    In the block, whatever else prints to it, such as a library or the user's network, goes to
    standard error: a program that reads a pipe gets only the result.
    """
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        yield out


def size(num_bytes: int) -> str:
    """Return a number of bytes as text, in the unit that fits."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    amount, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}"
