"""Forks of one process, which need not load anew what it has loaded: most of a short run."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def in_a_fork(work: Callable[[], object]) -> Any:
    """Do some work in a process of its own, and return what it returns there, by way of JSON."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
        except BaseException:  # noqa: BLE001 - the process ends with it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the work did not end"
    return json.loads(told)


def load_what_is_needed_for(work: Callable[[], object]) -> None:
    """Do some work in a fork; import here the modules that it has imported there.

    Nothing of the work runs in this process: torch, once it has run, cannot be forked.
    """

    def modules() -> list[str]:
        work()
        return sorted(sys.modules)

    for name in in_a_fork(modules):
        if name not in sys.modules:
            # What a package makes up while it runs cannot be imported by its name.
            with suppress(ImportError):
                importlib.import_module(name)
