"""Run one command: `finetune`, or `python -m finetune`."""

from finetune.cli import main
from finetune.process import for_one_task


def run() -> None:
    """Run the command."""
    with for_one_task():
        main()


if __name__ == "__main__":
    run()
