"""How a process is set up that does one thing and ends."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings of glibc's `mallopt`."""


@contextmanager
def for_one_task() -> Iterator[None]:
    """Set the process up as one should be that ends with the block.

    It looks for garbage rarely, and not once more at the end. And it keeps memory that it has
    freed: a network on a CPU takes the same again at once, and to give it back in between costs a
    tenth of a forward pass.
    """
    gc.set_threshold(50_000, 20, 20)
    _keep_freed_memory()
    try:
        yield
    finally:
        gc.freeze()


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries in the block: nobody looks for garbage meanwhile.

    They make a million objects that stay. To look through them again and again takes a third of
    the time that they take to load; nor are they looked through afterwards.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # what a second call would hold may be garbage by then
            gc.freeze()
        if was_on:
            gc.enable()


def _keep_freed_memory() -> None:
    """Let glibc hold blocks up to 32 MiB, the most it takes, and 256 MiB at the end of the heap."""
    with suppress(OSError, TypeError, AttributeError):  # another system, or another library of C
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)
