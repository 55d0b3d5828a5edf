"""Run one command: `finetune`, or `python -m finetune`."""

import os
import sys


def run() -> None:
    """Set up the process, then run the command that the arguments name; exits with its code."""
    leave_out_current_folder()
    # Not at the top: what these import would be looked for in the current folder too.
    from finetune.process import for_one_task, interruptible, loading
    from finetune.streams import set_up_standard_streams

    # First of all: libraries may print, or open files, while they are loaded.
    set_up_standard_streams()
    with for_one_task(), interruptible():
        with loading():
            # torch and pydantic are loaded here, so that a signal meanwhile ends the process
            # cleanly.
            from finetune.cli import main
            from finetune.redaction import redact_standard_error
        redact_standard_error()
        main()


def leave_out_current_folder() -> None:
    """Remove the current folder from the import path of this process and of its Python children.

    `python -m` puts it there, and so does an empty entry of PYTHONPATH. An entry that the user has
    written out stays, even if it names the current folder.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - `pathlib` might be the folder's
    except OSError:  # the folder was removed: Python could not put it there either
        here = ""
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [entry for entry in entries if entry]
    if named and named != entries:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        if here in sys.path and here not in map(os.path.abspath, named):
            sys.path.remove(here)
    os.environ["PYTHONSAFEPATH"] = "1"


if __name__ == "__main__":
    run()
