"""Run one command: `finetune`, or `python -m finetune`."""

from finetune.cli import main
from finetune.process import for_one_task
from finetune.redaction import redact_standard_error


def run() -> None:
    """Run the command."""
    redact_standard_error()
    with for_one_task():
        main()


if __name__ == "__main__":
    run()
