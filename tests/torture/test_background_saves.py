"""Checkpoints written while training goes on hold what was there when they were asked for."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from finetune.errors import CheckpointError
from finetune.optim.groups import state_by_name
from finetune.runs.background import Worker
from finetune.runs.kept import Checkpoints
from finetune.runs.watch import Watch
from finetune.train.checkpoints.checkpoint import load_checkpoint, save_checkpoint

HERE = Path(__file__).parent


@pytest.fixture
def gate(monkeypatch):
    """Keep the disk busy until the gate is opened."""
    opened, fsync = threading.Event(), os.fsync

    def waiting(descriptor):
        assert opened.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", waiting)
    yield opened
    opened.set()


def save(trainer):
    return save_checkpoint(
        trainer.saver.checkpoints,
        trainer.model,
        trainer.optimizer,
        trainer.progress,
        trainer.saver.base,
        scaler={},
        average=trainer.average,
    )


def momenta(trainer):
    state = state_by_name(trainer.optimizer)
    return {name: entries["momentum_buffer"].clone() for name, entries in state.items()}


def test_what_changes_right_after_a_save_is_not_in_it(runs, tmp_path, gate):
    trainer = runs.build(tmp_path / "run", train=runs.saving(background=True))
    window = next(trainer._windows())
    trainer.model.train()
    trainer.train_step(window)
    trainer.progress.ranking = [(1, 0.5)]
    trainer.progress.best = Watch(0.5, 1)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state = momenta(trainer)
    assert len(state) == 4
    save(trainer)
    with torch.no_grad():
        for tensor in trainer.model.state_dict().values():
            tensor.fill_(7)
        for entries in trainer.optimizer.state.values():
            entries["momentum_buffer"].fill_(7)
    trainer.progress.step, trainer.progress.ranking[0] = 5, (5, 7.0)
    gate.set()
    path = trainer.saver.checkpoints.whole(1)
    twin = runs.build(tmp_path / "twin")
    progress, _ = load_checkpoint(path, twin.model, twin.optimizer, twin.saver.base, twin.average)
    assert (progress.step, progress.ranking) == (1, [(1, 0.5)])
    for name, tensor in twin.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for name, tensor in momenta(twin).items():
        assert torch.equal(tensor, state[name]), name
    trainer.saver.checkpoints.worker.close()


def test_a_checkpoint_is_seen_only_when_it_is_durable(runs, tmp_path, gate):
    trainer = runs.build(tmp_path / "run", train=runs.saving(background=True))
    trainer.progress.step = 1
    final = save(trainer)
    # seen by another process, or a reader of its own
    assert Checkpoints(final.parent, keep_last=1).newest_valid() == (None, [])
    assert not final.exists()
    gate.set()
    trainer.saver.checkpoints.worker.wait()
    assert trainer.saver.checkpoints.newest_valid() == (final, [])
    trainer.saver.checkpoints.worker.close()


def test_a_run_with_saves_in_the_background_ends_as_without(runs, unbroken, tmp_path):
    trainer = runs.build(tmp_path / "run", train=runs.saving(background=True))
    trainer.fit()
    runs.assert_same_end(runs.end_of(trainer), unbroken[1])
    for path in trainer.saver.checkpoints.all():
        for name in ("weights.safetensors", "optimizer.safetensors"):
            twin = unbroken[0] / "checkpoints" / path.name / name
            assert (path / name).read_bytes() == twin.read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saving")]


def test_going_back_to_the_best_weights_waits_for_them(runs, tmp_path):
    phases = [
        {"name": "a", "freeze": ["body"], "until": {"steps": 3}, "restore_best": True},
        {"name": "b", "freeze": ["body", "norm"]},
    ]
    changes = {"optimizer": runs.RUINOUS, "freeze": {"phases": phases}}
    one = runs.build(tmp_path / "one", **changes)
    other = runs.build(tmp_path / "other", **changes, train=runs.saving(background=True))
    one.fit()
    other.fit()
    runs.assert_same_end(runs.end_of(one), runs.end_of(other))


@pytest.mark.parametrize(
    ("nth", "left"),
    [(1, 0), (11, 1), (12, 2), (31, 5)],
    ids=["first file", "folder", "after the rename", "last save"],
)
def test_an_error_while_writing_in_the_background_ends_the_run(
    runs, tmp_path, monkeypatch, nth, left
):
    """Each save syncs three files, the manifest, the folder, and the folder around it."""
    fsync, calls = os.fsync, iter(range(1, 1000))

    def failing(descriptor):
        if threading.current_thread().name.startswith("saving") and next(calls) == nth:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    trainer = runs.build(tmp_path / "run", train=runs.saving(background=True))
    with pytest.raises(CheckpointError, match="cannot save: No space left on device"):
        trainer.fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "No space left on device" in summary["reason"]
    monkeypatch.setattr(os, "fsync", fsync)
    again = runs.build(tmp_path / "run", train=runs.saving(background=True))
    assert again.progress.step == left
    again.fit()


ENDING = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import small_runs as runs
from finetune.train.checkpoints.checkpoint import save_checkpoint
from pathlib import Path

trainer = runs.build(Path(sys.argv[2]), train=runs.saving(background=True))
def save(step):
    trainer.progress.step = step
    save_checkpoint(trainer.saver.checkpoints, trainer.model, trainer.optimizer, trainer.progress,
                    trainer.saver.base, scaler={}, average=trainer.average)
save(1)
trainer.saver.checkpoints.worker.wait()
fsync = os.fsync
def slow(descriptor):
    time.sleep(0.2)
    fsync(descriptor)
os.fsync = slow
save(2)
while not list((Path(sys.argv[2]) / "checkpoints").glob(".tmp-*")):
    time.sleep(0.01)
if sys.argv[3] == "returns":
    sys.exit(3)
if sys.argv[3] == "raises":
    raise RuntimeError("the end")
os._exit(4)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "code", "newest"), [("returns", 3, 2), ("raises", 1, 2), ("dies", 4, 1)]
)
def test_a_process_that_ends_finishes_its_save_and_one_that_dies_loses_no_other(
    runs, tmp_path, way, code, newest
):
    command = [sys.executable, "-c", ENDING, str(HERE), str(tmp_path / "run"), way]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == code, ended.stderr
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=9)
    assert checkpoints.newest_valid() == (checkpoints.path_of(newest), [])
    assert len(checkpoints.orphans()) == (way == "dies")


def test_jobs_run_one_after_the_other_and_errors_are_raised_once():
    done, worker = [], Worker(in_thread=True)
    for number in range(5):
        worker.run(lambda number=number: done.append(number))
    worker.run(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: done.append("never"))
    worker.wait()
    worker.run(lambda: done.append(5))
    worker.close()
    assert done == [0, 1, 2, 3, 4, 5]
    worker.run(lambda: done.append(6))
    worker.close()
    assert done[-1] == 6
