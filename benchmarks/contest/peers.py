"""What both peers are given: data sets, loaders, torch's own scheduler.

They read the data and build the network by hand as the plain loop does, get whole batches at once
and gathered by one index, and neither log nor save: all of this is in their favour.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler

from contest.by_hand import Outcome
from contest.inputs import Split
from contest.job import Job


class Batches(Dataset[dict[str, Tensor]]):
    """A split as a data set whose index is a whole batch of positions."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return self.split.batch(rows) | {"labels": self.split.target[rows]}


class _Order(Sampler[Tensor]):
    """The windows of one epoch after another."""

    def __init__(self, epochs: list[list[Tensor]]) -> None:
        self.epochs, self.epoch = epochs, 0

    def __len__(self) -> int:
        return len(self.epochs[0])

    def __iter__(self) -> Iterator[Tensor]:
        windows = self.epochs[min(self.epoch, len(self.epochs) - 1)]
        self.epoch += 1
        yield from windows


def loader(job: Job, split: Split, *, shuffled: bool = False) -> Any:
    """Return a loader over a split, in order or in the order of each epoch."""
    in_order = [list(torch.arange(len(split)).split(job.batch_size))]
    order = [job.windows(epoch) for epoch in range(job.epochs)] if shuffled else in_order
    return DataLoader(Batches(split), sampler=_Order(order), batch_size=None)


def schedule_of(job: Job, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Return torch's scheduler with the rates of the job; the optimizer's own rate is 1."""
    last = len(job.rates) - 1
    columns = [column.tolist() for column in job.rates.T]

    def of(column: list[float]) -> Callable[[int], float]:
        return lambda step: column[min(step, last)]

    return LambdaLR(optimizer, [of(column) for column in columns])


def finished(job: Job, model: nn.Module, outcome: Outcome, accuracy: float, epochs: int) -> Outcome:
    """Return the outcome of a training that is over."""
    parameters = dict(model.named_parameters())
    outcome.weights = {name: parameters[name].detach() for name in job.start}
    outcome.accuracy = accuracy if epochs == job.epochs else None
    return outcome
