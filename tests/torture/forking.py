"""Load in this process what its forks would each load anew: most of the time of a short run."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress


def load_what_is_needed_for(work: Callable[[], object]) -> None:
    """Do some work in a fork; import here the modules that it has imported there.

    Nothing of the work runs in this process: torch, once it has run, cannot be forked.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        try:
            work()
            with os.fdopen(writing, "w") as pipe:
                json.dump(sorted(sys.modules), pipe)
        except BaseException:  # noqa: BLE001 - the process ends with it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the work did not end"
    for name in json.loads(told):
        if name not in sys.modules:
            # What a package makes up while it runs cannot be imported by its name.
            with suppress(ImportError):
                importlib.import_module(name)
