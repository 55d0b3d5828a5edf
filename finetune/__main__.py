"""The process that runs one command: `finetune`, or `python -m finetune`."""

import gc

from finetune.cli import main


def run() -> None:
    """Run the command, and look for garbage as rarely as a process should that ends with it.

    The libraries make a million objects that stay. To look through them again and again, and once
    more at the end, takes a third of the time that they take to load.
    """
    gc.set_threshold(50_000, 20, 20)
    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    run()
