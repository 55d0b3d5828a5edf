"""The process that runs one command: `finetune`, or `python -m finetune`."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.cli import main


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Look for garbage as rarely as a process should that ends with the block.

    The libraries make a million objects that stay. To look through them again and again, and once
    more at the end, takes a third of the time that they take to load.
    """
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.freeze()


def run() -> None:
    """Run the command."""
    with collecting_rarely():
        main()


if __name__ == "__main__":
    run()
