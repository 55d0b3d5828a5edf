"""A run that is asked to stop ends with exit code 75, and goes on as if it had never stopped."""

import json
import os
import signal
import threading

import pytest
import torch

from finetune.errors import StoppedError
from finetune.tracking.json_lines import read_metrics
from finetune.train.wire import build_trainer

PHASES = {
    "phases": [
        {"name": "head", "train": ["head"], "until": {"steps": 5}},
        {"name": "all", "freeze": [], "until": {"plateau": "validation/loss", "patience": 3}},
    ]
}
DATA = {
    "source": {"type": "random", "samples": 60, "features": 4, "targets": 3},
    "split": {"validation": 0.25, "test": 0.1},
}
TRAIN = {"steps": 12, "batch_size": 8, "evaluate_every": {"steps": 2}, "log_every": 1,
         "checkpoint": {"every": {"steps": 4}, "keep_last": 3}}  # fmt: skip


@pytest.fixture
def run_of(small_config, tmp_path):
    def build(run, **more):
        config = small_config(data=DATA, freeze=PHASES, train=TRAIN)
        return build_trainer(config, tmp_path / run, **more)

    return build


class Signals:
    """A forward hook that sends this process a signal in the pass that a test names."""

    def __init__(self, trainer, number, *, training, at):
        self.left, self.number, self.training = at, number, training
        self.handle = trainer.model.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        if module.training == self.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


def state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same_end(resumed, whole):
    for name, tensor in state(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    one, two = (json.loads(json.dumps(t.progress.to_json())) for t in (resumed, whole))
    for plain in (one, two):
        del plain["seconds"]
    assert one == two
    hidden = ("time/", "memory/")
    told = [
        [{k: v for k, v in line.items() if not k.startswith(hidden)} for line in lines]
        for lines in (read_metrics(trainer.folder.metrics) for trainer in (resumed, whole))
    ]
    assert told[0] == told[1]


MOMENTS = [
    *((True, step) for step in (1, 2, 5, 6, 11, 12)),  # in a step: inside, at the end of a phase
    *((False, batch) for batch in (1, 3, 7, 8, 12)),  # in an evaluation, the last two included
]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize(("training", "at"), MOMENTS)
def test_a_signal_ends_the_step_saves_and_loses_nothing(run_of, number, training, at):
    whole, first = run_of("whole"), run_of("cut")
    whole.fit()
    Signals(first, number, training=training, at=at)
    with pytest.raises(StoppedError, match=f"stopped by {number.name} after step") as caught:
        first.fit()
    assert caught.value.exit_code == 75
    assert first.folder.read_json("summary.json")["status"] == "stopped"
    resumed = run_of("cut")
    assert resumed.progress.step == first.progress.step
    resumed.fit()
    assert_same_end(resumed, whole)


def test_every_kind_of_moment_is_met(run_of):
    """Steps and evaluations of the run above: a change of it must not leave moments out."""
    seen = {True: 0, False: 0}
    trainer = run_of("whole")

    def count(module, inputs):
        seen[module.training] += 1

    trainer.model.register_forward_pre_hook(count)
    assert trainer.fit().transitions == [5]
    assert seen == {True: 12, False: 13}


@pytest.mark.parametrize("number_of_sync", [1, 5, 6, 8, 12])
def test_a_signal_while_saving_lets_the_checkpoint_become_whole(
    run_of, monkeypatch, number_of_sync
):
    whole, first = run_of("whole"), run_of("cut")
    whole.fit()
    fsync, calls = os.fsync, []

    def signalling(descriptor):
        calls.append(descriptor)
        if len(calls) == number_of_sync:
            os.kill(os.getpid(), signal.SIGTERM)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", signalling)
    with pytest.raises(StoppedError):
        first.fit()
    monkeypatch.undo()
    assert first.saver.checkpoints.newest_valid() == (
        first.saver.checkpoints.path_of(first.progress.step),
        [],
    )
    resumed = run_of("cut")
    resumed.fit()
    assert_same_end(resumed, whole)


def test_a_stopped_trainer_goes_on_in_the_same_process_too(run_of):
    whole, cut = run_of("whole"), run_of("cut")
    whole.fit()
    Signals(cut, signal.SIGTERM, training=True, at=4)
    with pytest.raises(StoppedError):
        cut.fit()
    cut.fit()
    assert_same_end(cut, whole)


def test_handlers_are_given_back_and_other_threads_set_none(run_of):
    before = signal.getsignal(signal.SIGTERM)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run_of("thread").fit().step))
    thread.start()
    thread.join()
    run_of("main").fit()
    assert ended == [12]
    assert signal.getsignal(signal.SIGTERM) is before
