"""Networks that fail when a test wants them to, for layers of `type: import`."""

import os
import signal
from pathlib import Path

import torch
from torch import nn


class _Exploding(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


class Poisoned(nn.Module):
    """A network that samples whose first feature exceeds `limit` poison in training.

    Its batch norm takes the poison in before the loss does.
    """

    def __init__(self, limit, fault="loss", width=4):
        super().__init__()
        self.limit, self.fault = limit, fault
        self.body = nn.Linear(width, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, features):
        hidden = self.body(features)
        is_bad = self.training and bool((features[:, 0] > self.limit).any())
        if is_bad and self.fault == "loss":
            hidden = hidden + float("nan")
        if is_bad and self.fault == "gradient":
            hidden = _Exploding.apply(hidden)
        if is_bad and self.fault == "row":
            hidden = torch.cat([_Exploding.apply(hidden[:, :1]), hidden[:, 1:]], 1)
        return self.head(self.norm(hidden).tanh())


class Hungry(nn.Module):
    """A network for which memory runs out in training, above `limit` samples."""

    def __init__(self, limit, message="", width=4):
        super().__init__()
        self.limit, self.message = limit, message
        self.norm = nn.BatchNorm1d(width) if limit > 1 else nn.Identity()
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 3)
        self.sizes = []

    def forward(self, features):
        outputs = self.head(self.drop(self.norm(features)))
        if self.training and torch.is_grad_enabled():
            self.sizes.append(len(features))
            if len(features) > self.limit:
                if self.message:
                    raise RuntimeError(self.message)
                raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs


class HungryRank(nn.Module):
    """A network for which memory runs out in training above `limit` samples, on one rank alone.

    Without a rank it runs out on the single process of a run.
    """

    def __init__(self, limit, rank=None, width=4):
        super().__init__()
        self.limit, self.is_hungry = limit, os.environ.get("RANK") == rank
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 3)

    def forward(self, features):
        is_step = self.training and torch.is_grad_enabled()
        if is_step and self.is_hungry and len(features) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(self.drop(features))


class StoppedRank(nn.Module):
    """A network of which one rank comes to a stop in a step of training, once."""

    def __init__(self, rank, step, stopped, width=4):
        super().__init__()
        self.is_it, self.stopped = os.environ.get("RANK") == rank, Path(stopped)
        self.left = step
        self.head = nn.Linear(width, 3)

    def forward(self, features):
        if self.training and torch.is_grad_enabled() and self.is_it and not self.stopped.exists():
            self.left -= 1
            if not self.left:
                self.stopped.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
        return self.head(features)


class StrayRank(nn.Module):
    """A network whose last layer one rank alone changes by itself, in a step of training."""

    def __init__(self, rank, step, width=4):
        super().__init__()
        self.is_it, self.left = os.environ.get("RANK") == rank, step
        self.body, self.head = nn.Linear(width, 4), nn.Linear(4, 3)

    def forward(self, features):
        if self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.is_it and not self.left:
                self.head.bias.data[1].add_(0.5)
        return self.head(self.body(features))


def hungry_loss(limit):
    """Make a loss for which memory runs out above `limit` samples where gradients are computed."""

    def loss(outputs, batch):
        if outputs.requires_grad and len(outputs) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (outputs - batch.target).square().mean(1)

    return loss
