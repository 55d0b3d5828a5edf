"""Ctrl-C and SIGTERM before anything is saved: exit code 130, one line, no traceback, no abort."""

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from finetune.errors import StoppedError
from finetune.process import Interrupted, interrupt, unanswered
from finetune.train.stopping import Stop, leaving_at_once

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def answers_signals(process):
    """Tell whether the process has a handler for each signal; Python itself has none for most."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return all(caught >> number - 1 & 1 for number in SIGNALS)


def interrupted(started, number, after_s, *arguments):
    """Send a signal some time after the first line of ours can answer; return code and stderr."""
    process = started(*arguments)
    until = time.monotonic() + 120
    while Path("/proc/self/status").exists() and not answers_signals(process):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(after_s)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def assert_ended_well(code, err, number):
    said = err.splitlines()
    assert code == 130, (code, err)
    assert said[-1] == f"interrupted by {number.name}", err
    assert len(said) < 20, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_libraries_load_ends_with_130_and_one_line(written, started, number):
    code, err = interrupted(started, number, 1.0, "train", written(), "-o", "train.steps=1000000")
    assert_ended_well(code, err, number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_at_no_moment_of_60_does_it_end_otherwise(written, started):
    config = written()
    draw = random.Random(0)
    for _ in range(60):
        number = draw.choice(SIGNALS[:2])
        verb = draw.choice(["train", "plan"])
        more = ["-o", "train.steps=1000000"] if verb == "train" else []
        code, err = interrupted(started, number, draw.uniform(0.0, 2.5), verb, config, *more)
        if code == 0 and verb == "plan":
            continue
        # A run may have begun, here or before: then a checkpoint of this folder is gone on from.
        if code == 75 and "the same command goes on from" in err:
            continue
        assert_ended_well(code, err, number)


LOADING = """
import os, signal, sys, time
from finetune.process import interruptible, loading
number = getattr(signal, sys.argv[1])
with interruptible():
    try:
        with loading():
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            except BaseException:
                print("a library has caught it")
    finally:
        print("unwound")
"""
WORKING = """
import os, signal, sys, time
from finetune.cli.endings import told
from finetune.process import interruptible
number = getattr(signal, sys.argv[1])
with interruptible(), told():
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    except Exception:
        print("a library has caught it")
    finally:
        print("unwound")
"""
TWICE = """
import os, signal, sys, time
from finetune.process import interruptible
number = getattr(signal, sys.argv[1])
with interruptible():
    for _ in range(2):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except BaseException:
            print("swallowed", flush=True)
"""
IN_C = """
import os, signal, sys, time
from finetune.process import interruptible
class Removed:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(60)
with interruptible():
    Removed()  # Python passes on no exception of such a method
    print("a library goes on")
"""
TURNED = """
import os, signal, sys, time
from finetune.cli.endings import told
from finetune.process import interruptible
with interruptible(), told():
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(60)
    except BaseException as error:
        raise ValueError("an error of a library's own") from error
"""
FORKED = """
import os, signal, sys, time
from finetune.process import interruptible
number = getattr(signal, sys.argv[1])
ready, done = os.pipe()
with interruptible():
    child = os.fork()
    if not child:
        os.write(done, b"x")  # a signal that comes between fork and this is lost to any Python
        time.sleep(30)
        os._exit(1)
    os.read(ready, 1)
    os.kill(child, number)
    assert os.waitpid(child, 0)[1] == number
sys.exit(130)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("code", "out"),
    [
        (LOADING, ""), (WORKING, "unwound\n"), (TWICE, "swallowed\n"), (IN_C, ""), (TURNED, ""),
        (FORKED, ""),
    ],
    ids=["loading", "working", "twice", "in C", "turned", "forked"],
)  # fmt: skip
def test_loading_ends_at_once_and_work_is_unwound(code, out, number):
    done = subprocess.run(
        [sys.executable, "-c", code, number.name],
        check=False, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, out), done.stderr
    assert done.stderr == ("" if code is FORKED else f"interrupted by {number.name}\n")


def build_with_a_library_that_catches(caught, can_go_on):
    with leaving_at_once(can_go_on), suppress(caught):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_what_loads_while_a_run_is_built_cannot_catch_its_end(caught):
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        build_with_a_library_that_catches(caught, lambda: False)
    with pytest.raises(StoppedError, match="interrupted by SIGTERM before the first step"):
        build_with_a_library_that_catches(caught, lambda: True)
    assert unanswered() is None


def test_a_signal_that_a_library_caught_stops_the_run_that_begins_after_it():
    with suppress(Interrupted):
        interrupt(signal.SIGTERM)
    stop = Stop()
    with stop.listening():
        assert stop.requested is signal.SIGTERM
    assert unanswered() is None
