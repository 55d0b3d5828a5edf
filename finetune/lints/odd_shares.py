"""Note on numbers to learn by a cross entropy that are no shares of classes and no probabilities.

Letters: B samples, C numbers of a sample.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from finetune.config.loss_keys import BinaryCrossEntropyLoss, CrossEntropyLoss, Loss
from finetune.config.run import RunConfig
from finetune.config.task_list_keys import TaskList
from finetune.data.batches import Samples
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.tasks.views import View

_LOOKED_AT = 1000
"""Number of samples whose numbers are looked at."""
_ROUNDING = 1e-3
"""Largest distance of a sum of shares from 1: they may be written with few digits."""


def odd_shares(config: RunConfig, samples: Samples) -> tuple[Lint, ...]:
    """Return a note on each cross entropy whose loss has no smallest value, because of its targets.

    Args:
        config: The run config.
        samples: The training samples, or some of them.
    """
    learnt = list(_cross_entropies_of_numbers(config))
    if not learnt or not len(samples):
        return ()
    # The targets alone: to make inputs such as images would take long.
    rows = torch.arange(min(len(samples), _LOOKED_AT))
    batch = samples.fetch(rows, blank=samples.inputs)
    found: list[Lint] = []
    for key, loss, view in learnt:
        target = (batch if view is None else view.of_batch(batch)).target
        if target is not None and target.is_floating_point() and len(target):
            found += _note(key, loss, target)
    return tuple(found)


def _cross_entropies_of_numbers(config: RunConfig) -> Iterator[tuple[Key, Loss, View | None]]:
    """Yield the cross entropies of tasks that learn numbers, each with its place in the config."""
    task = config.task
    if not isinstance(task, TaskList):
        if task.learns == "numbers":
            for number, loss in _cross_entropies(task.losses):
                yield ("task", "losses", number), loss, None
        return
    for n, one in enumerate(task.tasks):
        if one.learns == "numbers":
            view = View(one.label, one.output, one.target)
            for number, loss in _cross_entropies(one.losses):
                yield ("task", "tasks", n, "losses", number), loss, view


def _cross_entropies(losses: Sequence[Loss] | None) -> list[tuple[int, Loss]]:
    """Return the cross entropies among losses, each with its number."""
    kinds = CrossEntropyLoss | BinaryCrossEntropyLoss
    return [(n, loss) for n, loss in enumerate(losses or ()) if isinstance(loss, kinds)]


def _note(key: Key, loss: Loss, target: Tensor) -> Iterator[Lint]:
    """Yield a note if some targets `(B,)` or `(B, C)` are not what the loss takes them for."""
    numbers = target.reshape(len(target), -1)
    is_odd = (numbers < 0).any(1) | (numbers > 1).any(1)
    wanted = "probabilities, from 0 to 1"
    if isinstance(loss, CrossEntropyLoss):
        is_odd |= (numbers.sum(1) - 1).abs() > _ROUNDING
        wanted = "shares of classes, which are 0 or more and add up to 1"
    if count := int(is_odd.sum()):
        yield Lint(
            key,
            f"{loss.type} takes the numbers to learn for {wanted}, and {count:,} of "
            f"{len(target):,} samples looked at have others: the loss may fall below 0 without end",
            "losses: [{type: mse}] compares numbers as they are",
        )
