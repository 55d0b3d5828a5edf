"""A tracker that is slow, hangs or fails: the run goes on, and a line tells what is missing."""

import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from finetune.errors import CheckpointError, FinetuneError
from finetune.pictures.drawing import Picture, drawn
from finetune.tracking.apart import Apart
from finetune.tracking.best_effort import BestEffort
from finetune.tracking.run_names import Identity
from finetune.tracking.tracker import Tracker
from finetune.tracking.waiting_calls import MOST, WaitingCalls

DRAWN = drawn(Picture(2, 2, [], "nothing"))


class HeldBack(Tracker):
    """Waits in its first call, then notes all that it gets."""

    def __init__(self):
        self.may_go_on, self.got = threading.Event(), []

    def scalars(self, step, values):
        self.may_go_on.wait()
        self.got.append(step)

    def ends(self, status):
        self.got.append(status)


class FullDisk(Tracker):
    """A tracker whose disk is full from the call of a name on."""

    def __init__(self, fails_at):
        self.fails_at, self.calls = fails_at, []

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails_at:
            raise FinetuneError("cannot write: No space left on device", where="run/tensorboard")

    def begin(self, step, total_steps, *, lines=None):
        self._call("begin")

    def scalars(self, step, values):
        self._call("scalars")

    def text(self, tag, text, step):
        self._call("text")

    def image(self, tag, image, step):
        self._call("image")

    def pr_curve(self, tag, is_so, score, step):
        self._call("pr_curve")

    def histogram(self, tag, values, step):
        self._call("histogram")

    def hparams(self, values, metrics):
        self._call("hparams")

    def file(self, path):
        self._call("file")

    def ends(self, status):
        self._call("ends")

    def close(self):
        self._call("close")


def apart(tracker, said, identify=lambda: Identity("0", "run", None)):
    return Apart("it", identify, lambda _: tracker, said.append)


def test_a_program_that_hangs_takes_no_more_memory_and_what_it_misses_is_told():
    said, held = [], HeldBack()
    tracker = apart(held, said)
    for step in range(MOST + 100):
        tracker.scalars(step, {})
    tracker.ends("done")
    assert said == ["it is slower than the run: calls are dropped until it has caught up"]
    held.may_go_on.set()
    tracker.close()
    # One call may have left the queue before it was full.
    missing = MOST + 100 - len(held.got[:-1])
    assert missing in (99, 100)
    assert held.got == [*range(MOST + 100 - missing), "done"]
    assert said[1:] == [f"it was slower than the run: it lacks {missing} calls"]


def test_pictures_that_wait_have_a_bound_of_bytes():
    calls, got = WaitingCalls(most=10, most_bytes=100), []
    for size in (60, 60, 40):
        calls.put(lambda _, size=size: got.append(size), size)
    calls.put(None, 60, is_needed=True)
    while (job := calls.get()) is not None:
        job(Tracker)
    assert (got, calls.left_out) == ([60, 40], 1)
    calls.put(lambda _: None, 100)
    assert calls.left_out == 1


def test_a_run_folder_that_cannot_name_the_run_costs_the_program_alone():
    def identify():
        raise CheckpointError("cannot write: No space left on device", where="run/tracked.json")

    said, held = [], HeldBack()
    tracker = apart(held, said, identify)
    tracker.begin(0, 9)
    tracker.scalars(1, {})
    tracker.close()
    assert said == [
        "it failed, and the run goes on without it: "
        "run/tracked.json: cannot write: No space left on device"
    ]


SLOW_MODULE = """
import threading, time
import __main__
__main__.is_imported.set()
time.sleep(1)
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_no_worker_is_forked_while_a_program_is_imported(tmp_path, monkeypatch):
    """A fork in between would copy the lock of the half imported module."""
    (tmp_path / "imported_slowly.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Taken back at the end, also what the thread imports.
    monkeypatch.setitem(sys.modules, "imported_slowly", None)
    monkeypatch.delitem(sys.modules, "imported_slowly")
    begun = threading.Event()
    monkeypatch.setattr(sys.modules["__main__"], "is_imported", begun, raising=False)

    def make(_):
        import imported_slowly  # noqa: F401

        return HeldBack()

    tracker = Apart("it", lambda: Identity("0", "run", None), make, print)
    tracker.begin(0, 1)
    assert begun.wait(120)
    if (child := os.fork()) == 0:
        code = 1
        try:
            import imported_slowly  # noqa: F401

            code = 7
        finally:
            os._exit(code)  # never back into the tests
    until = time.monotonic() + 120
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    tracker.close()
    assert os.waitstatus_to_exitcode(ended[1]) == 7


def forked():
    """Fork a process that ends at once, and wait for it."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


class WaitsForFork(HeldBack):
    """Waits in a call until the run has started a process, and notes whether it has."""

    def __init__(self):
        super().__init__()
        self.is_begun = threading.Event()

    def scalars(self, step, values):
        self.is_begun.set()
        self.got.append(self.may_go_on.wait(60))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_call_that_waits_for_a_server_keeps_no_worker_from_starting(monkeypatch):
    monkeypatch.setattr("finetune.tracking.apart._FORK_WAITS_S", 3600)
    waits = WaitsForFork()
    tracker = apart(waits, [])
    tracker.scalars(1, {})
    assert waits.is_begun.wait(120)
    forked()
    waits.may_go_on.set()
    tracker.close()
    assert waits.got == [True]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_program_that_hangs_while_it_loads_holds_up_one_worker_alone(monkeypatch):
    waits = WaitsForFork()

    def make(_):
        waits.scalars(0, {})
        return waits

    tracker = Apart("it", lambda: Identity("0", "run", None), make, print)
    tracker.begin(0, 1)
    assert waits.is_begun.wait(120)
    monkeypatch.setattr("finetune.tracking.apart._FORK_WAITS_S", 0.01)
    forked()
    monkeypatch.setattr("finetune.tracking.apart._FORK_WAITS_S", 3600)
    forked()
    waits.may_go_on.set()
    tracker.close()
    assert waits.got == [True]


def test_what_waits_for_a_program_that_has_failed_is_not_kept():
    class Fails(HeldBack):
        def scalars(self, step, values):
            super().scalars(step, values)
            raise RuntimeError("no server")

    said, fails = [], Fails()
    tracker = apart(fails, said)
    waiting = [np.zeros(1), np.zeros(1)]
    kept = [weakref.ref(one) for one in waiting]
    tracker.scalars(1, {})
    while waiting:
        tracker.histogram("a", waiting.pop(), 1)
    fails.may_go_on.set()
    tracker.close()
    assert said == ["it failed, and the run goes on without it: RuntimeError: no server"]
    assert [one() for one in kept] == [None, None]


def all_calls(tracker):
    tracker.begin(0, 9)
    tracker.text("a", "b", 0)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.image("a", DRAWN, 1)
    tracker.pr_curve("a", np.ones(2, bool), np.ones(2), 1)
    tracker.histogram("a", np.ones(2), 1)
    tracker.hparams({}, {})
    tracker.ends("done")
    tracker.file(None)
    tracker.close()
    tracker.close()


NAMES = [
    "begin",
    "text",
    "scalars",
    "image",
    "pr_curve",
    "histogram",
    "hparams",
    "ends",
    "file",
    "close",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_only_for_looking_gets_no_further_call_after_a_fault_and_is_told_once(name):
    said, full = [], FullDisk(name)
    all_calls(BestEffort("tensorboard", full, said.append))
    assert said == [
        "tensorboard failed, and the run goes on without it: "
        "run/tensorboard: cannot write: No space left on device"
    ]
    # It is closed in any case: its file and its thread must not stay.
    assert full.calls[: NAMES.index(name) + 1] == NAMES[: NAMES.index(name) + 1]
    assert set(full.calls[NAMES.index(name) + 1 :]) <= {"close"}
    assert "close" in full.calls


def test_without_a_fault_each_call_is_handed_on():
    said, full = [], FullDisk(None)
    all_calls(BestEffort("tensorboard", full, said.append))
    assert (said, full.calls) == ([], [*NAMES, "close"])
