"""Parts of a run that take their time, or all of it, for configs of `type: import`."""

import random
import time
from pathlib import Path

import torch
from torch import nn


class Slowly(nn.Module):
    """Hands on what it gets, after a while; leaves a file when it is first called in a step."""

    def __init__(self, seconds, started):
        super().__init__()
        self.seconds, self.started = seconds, Path(started)

    def forward(self, features):
        # Before a run its layers are looked at, in training mode too, and without gradients.
        if self.training and torch.is_grad_enabled():
            self.started.touch()
            time.sleep(self.seconds)
        return features


def jitter(seconds=0.0, started=None):
    """Make a step that adds noise to the features, as an augmentation does."""

    def step(sample):
        if started is not None:
            Path(started).touch()
        time.sleep(seconds)
        return sample | {"features": sample["features"] + random.gauss(0, 1)}

    return step


def hang_now_and_then():
    """Make a step that never comes back from one sample in 25."""

    def step(sample):
        if random.random() > 0.96:
            wait_for_what_never_comes()
        return sample

    return step


def wait_for_what_never_comes():
    """Sleep, in a function that a stack names."""
    while True:
        time.sleep(1)
