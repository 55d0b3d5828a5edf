"""Kill a run at its n-th call to the system while it saves and prunes, for every n there is.

A process of its own: `kill_in_save.py FOLDER SCENARIO STRIDE`. It prepares a run that stands in
its middle; then, for n = 1, 1 + STRIDE, ..., it copies that run, goes on in a child that kills
itself at call n, looks at what is left, and lets a second child go on to the end. The last n is
the one that no call answers to. Prints how many kills there were.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import small_runs as runs  # noqa: E402

from finetune import disk  # noqa: E402
from finetune.runs.kept import Checkpoints  # noqa: E402
from finetune.train.checkpoints import checkpoint as writing  # noqa: E402

CALLS = ["fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "open", "pwrite", "ftruncate"]
KEEP_LAST = 2
KILLED = -signal.SIGKILL


class Killer:
    """Counts calls to the system, and kills this process before the n-th of them."""

    def __init__(self, nth):
        self.left = nth

    def install(self):
        """Stand before every call; a file that is written at the n-th one is cut in half."""
        for name in CALLS:
            setattr(os, name, self.before(getattr(os, name)))
        writing.save_file = self.halfway(writing.save_file, lambda _, path: path)
        halfway = self.halfway(disk.write_new, lambda path, *_: path)
        disk.write_new = writing.write_new = halfway

    def is_due(self):
        self.left -= 1
        return self.left == 0

    def before(self, function):
        def call(*args, **kwargs):
            if self.is_due():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def halfway(self, function, path_of):
        def call(*args, **kwargs):
            is_due = self.is_due()
            result = function(*args, **kwargs)
            if is_due:
                os.truncate(path_of(*args), path_of(*args).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def in_child(work):
    """Run `work` in a child; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - told to the parent by the code
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class StoppedError(Exception):
    pass


def stop():
    raise StoppedError


class Scenario:
    """A run that stands in its middle, and what is done with it."""

    def __init__(self, name):
        self.name = name
        settings = runs.saving(
            keep_last=KEEP_LAST, best="validation/loss", background=name == "background"
        )
        self.changes = {"train": settings}
        if name != "again":
            self.changes["optimizer"] = runs.RUINOUS  # the best is an old one, that must stay

    def build(self, folder, listener=None):
        return runs.build(folder, listener, **self.changes)

    def prepare(self, folder):
        """Leave a run of which four of six steps are done."""
        listener = runs.Listener()
        listener.at[5] = stop
        trainer = self.build(folder, listener)
        try:
            trainer.fit()
        except StoppedError:
            pass
        else:
            raise AssertionError("the run was not stopped")
        if self.name == "damaged":
            runs.flip(trainer.saver.checkpoints.path_of(4) / "progress.json")

    def go_on(self, folder, nth):
        """Go on to the end, or save once more what is there, and die on the way."""
        trainer = self.build(folder)
        if self.name == "again":
            Killer(nth).install()
            writing.save_checkpoint(
                trainer.saver.checkpoints,
                trainer.model,
                trainer.optimizer,
                trainer.progress,
                trainer.saver.base,
                scaler={},
                average=trainer.average,
            )
            return
        Killer(nth).install()
        trainer.fit()

    def finish(self, folder, expected):
        """Go on without a kill, and compare the end with that of a run that was never killed."""
        trainer = self.build(folder)
        trainer.fit()
        runs.assert_same_end(runs.end_of(trainer), expected)
        assert trainer.saver.checkpoints.orphans() == []
        names = sorted(path.name for path in trainer.saver.checkpoints.folder.iterdir())
        assert all(name.startswith("step-") for name in names), names


def whole_steps(folder):
    checkpoints = Checkpoints(folder / "checkpoints", KEEP_LAST)
    paths = checkpoints.all()
    return {int(path.name[-8:]): checkpoints.fault(path) for path in paths}


def main():
    place, scenario, stride = Path(sys.argv[1]), Scenario(sys.argv[2]), int(sys.argv[3])
    whole = scenario.build(place / "unbroken")
    whole.fit()
    expected = runs.end_of(whole)
    scenario.prepare(place / "prepared")
    before = whole_steps(place / "prepared")
    good = {step for step, fault in before.items() if fault is None}
    assert len(good) >= 2, before
    best = min(good) if scenario.name != "again" else None
    kills = 0
    for nth in range(1, 100_000, stride):
        folder = place / f"killed-{nth}"
        shutil.copytree(place / "prepared", folder)
        code = in_child(lambda nth=nth, folder=folder: scenario.go_on(folder, nth))
        assert code in (0, KILLED), (nth, code)
        left = whole_steps(folder)
        faults = {s: f for s, f in left.items() if f is not None and before.get(s) is None}
        assert not faults, (nth, faults)
        still_good = {step for step, fault in left.items() if fault is None}
        assert max(still_good) >= max(good), (nth, still_good)
        assert len(still_good) >= min(KEEP_LAST, len(good)), (nth, still_good)
        assert best is None or best in still_good, (nth, still_good)
        code_of_rest = in_child(lambda folder=folder: scenario.finish(folder, expected))
        assert code_of_rest == 0, (nth, code_of_rest)
        shutil.rmtree(folder)
        if code == 0:
            break
        kills += 1
    print(kills)


main()
