"""The process of a command keeps what it will need again."""

import platform
import subprocess
import sys

import pytest

PASSES = """
import resource
from contextlib import nullcontext
from finetune.process import for_one_task
with {context}:
    for number in range(12):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [bytearray(24 << 20) for _ in range(5)]
        del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(context):
    """Return how many pages were asked of the system for the same 120 MiB, ten times over."""
    code = PASSES.format(context=context)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_taken_again_without_asking_the_system():
    assert faults("for_one_task()") < 100 < faults("nullcontext()")


LOADED = """
import gc
from finetune.process import loading
frozen = []
gc.collect()  # or one that is due would run before the library is there
gc.callbacks.append(lambda phase, info: frozen.append(gc.get_freeze_count()))
with loading():
    library = [[] for _ in range(300_000)]
garbage = [[] for _ in range(3_000)]
print(len(frozen) > 0 and min(frozen) > len(library))
"""


def test_no_collection_looks_at_what_a_library_has_made():
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


ENDING = """
import atexit, os, signal
from contextlib import nullcontext
from finetune.process import for_one_task
# A process of a script in the background ignores it from the beginning.
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with {context}:
    print("all of it")
"""


@pytest.mark.parametrize(
    ("context", "ends_well"), [("for_one_task()", True), ("nullcontext()", False)]
)
def test_a_signal_while_python_takes_itself_down_changes_no_end(context, ends_well):
    code = ENDING.format(context=context)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "all of it\n"
    assert (done.returncode == 0 and done.stderr == "") is ends_well


WAITING = """
import os, signal, threading, time
from finetune.process import for_one_task
def wait():
    threading.main_thread().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
with for_one_task():
    threading.Thread(target=wait).start()
"""


def test_a_command_whose_thread_hangs_at_the_end_can_be_interrupted():
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (130, "interrupted by SIGTERM\n")
