"""The process that runs one command: `finetune`, or `python -m finetune`."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from finetune.cli import main

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings of glibc's `mallopt`."""


@contextmanager
def for_one_task() -> Iterator[None]:
    """Set the process up as one should be that ends with the block.

    It looks for garbage rarely: the libraries make a million objects that stay. To look through
    them again and again, and once more at the end, takes a third of the time that they take to
    load. And it keeps memory that it has freed: a network on a CPU takes the same again at once,
    and to give it back in between costs a tenth of a forward pass.
    """
    gc.set_threshold(50_000, 20, 20)
    _keep_freed_memory()
    try:
        yield
    finally:
        gc.freeze()


def run() -> None:
    """Run the command."""
    with for_one_task():
        main()


def _keep_freed_memory() -> None:
    """Let glibc hold blocks up to 32 MiB, the most it takes, and 256 MiB at the end of the heap."""
    with suppress(OSError, TypeError, AttributeError):  # another system, or another library of C
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)


if __name__ == "__main__":
    run()
