"""Runs of six steps with all kinds of what a checkpoint holds, and how two of them compare.

A frozen layer, a BatchNorm whose buffers move, momentum in the optimizer, random numbers as data.
Tests and the processes that they kill build the same run from here.
"""

import json

import torch

from finetune.config.run import RunConfig
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

TRAIN = {
    "steps": 6,
    "batch_size": 8,
    "log_every": 1,
    "evaluate_every": {"steps": 2},
    "checkpoint": {"every": {"steps": 1}, "keep_last": 9},
}
RUN = {
    "name": "small",
    "seed": 0,
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "act", "type": "Tanh"},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
        "split": {"validation": 0.2},
    },
    "task": {"type": "regression"},
    "freeze": ["body"],
    "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
    "train": TRAIN,
    "cache": {"use": "off"},
}
RUINOUS = {"type": "SGD", "lr": 3.0, "momentum": 0.9}
"""An optimizer that ruins the network: the first evaluation, at step 2, is the best one."""


class Listener(Tracker):
    """Keeps the lines told to the person who watches, and does something at one step."""

    def __init__(self):
        self.lines = []
        self.at = {}

    def message(self, text):
        self.lines.append(text)

    def scalars(self, step, values):
        if step in self.at and "train/loss" in values:
            self.at.pop(step)()


def saving(**changes):
    """Return the settings of training with others for checkpoints."""
    return TRAIN | {"checkpoint": TRAIN["checkpoint"] | changes}


def build(folder, listener=None, **changes):
    """Build the trainer of a run; `changes` replace whole sections."""
    return build_trainer(RunConfig.model_validate(RUN | changes), folder, tracker=listener)


def end_of(trainer):
    """Return weights, optimizer state and metrics of a finished run, times left out."""
    state = trainer.optimizer.state_dict()["state"]
    lines = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines
    ]
    weights = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    return weights, {k: v["momentum_buffer"].clone() for k, v in state.items()}, kept


def assert_same_end(one, other):
    """Compare two ends bit by bit."""
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name
    assert one[2] == other[2]


def flip(path, place=None, bit=0):
    """Flip one bit of a file, in the middle if not told where."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(content)
