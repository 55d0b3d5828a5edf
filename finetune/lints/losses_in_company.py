"""Find a loss of the user's own that compares the samples of a pass, and does not say so."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.config.loss_keys import ImportLoss
from finetune.config.task_keys import ImportTask
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.data.batches import Batch
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.lints.squashed_logits import FEW
from finetune.lints.subject import Subject
from finetune.tasks.weighted_loss import WeightedLoss


def losses_in_company(subject: Subject) -> Iterator[Lint]:
    """Yield a note if the loss of a sample changes with the other samples of its pass."""
    own = [(n, loss) for n, loss in enumerate(subject.task.losses) if _is_undeclared(subject, n)]
    if not own or len(subject.samples) < FEW:
        return
    # Both batches are padded alike: else the outputs may differ by their padding.
    extent = subject.samples.extent(torch.arange(FEW))
    length = None if extent is None else extent.width
    rows = torch.arange(FEW)
    together, *halves = (
        _Passed(batch, subject.model(**batch.inputs))
        for batch in (subject.fetched(part, length) for part in (rows, *rows.chunk(2)))
    )
    for number, loss in own:
        if not _changes(loss, together, halves):
            continue
        yield Lint(
            _key_of_loss(subject.config.task, number),
            f"loss {loss.name!r} of a sample changes with the others of its pass, and windows are "
            "cut into passes by train.micro_batch, or where memory runs out",
            "set the attribute whole_window = True on the loss: then no window is ever cut",
        )


def _key_of_loss(task: AnyTask, number: int) -> Key:
    """Return the key of the path of an imported loss; `number` is its place among all losses."""
    if isinstance(task, ImportTask):
        return ("task", "path")
    if not isinstance(task, TaskList):
        return ("task", "losses", number, "path")
    place = [n for n, one in enumerate(task.tasks) for _ in one.chosen_losses][number]
    before = sum(len(other.chosen_losses) for other in task.tasks[:place])
    return ("task", "tasks", place, "losses", number - before, "path")


def _is_undeclared(subject: Subject, number: int) -> bool:
    """Tell whether a loss is imported and has no `whole_window = True`."""
    task = subject.config.task
    if not task.has_own_loss:
        return False
    is_own = isinstance(task, ImportTask) or isinstance(task.chosen_losses[number], ImportLoss)
    return is_own and not subject.task.losses[number].whole_window


class _Passed(NamedTuple):
    """A batch and what the network gives for it."""

    batch: Batch
    outputs: Any


def _changes(loss: WeightedLoss, together: _Passed, halves: Sequence[_Passed]) -> bool:
    """Tell whether the loss over some samples differs from that over their halves.

    Compared are the losses of the samples, or the sums if the loss gives a sum and a count.
    """
    whole, *apart = (loss(each.outputs, each.batch) for each in (together, *halves))
    if not whole.is_own:
        # Each loss, not their sum: what one sample gains another may lose.
        of_each, *of_halves = (
            loss.function(*loss.seen(each.outputs, each.batch)) for each in (together, *halves)
        )
        return _differ(of_each, torch.cat(of_halves))
    return _differ(whole.total, torch.stack([half.total for half in apart]).sum())


def _differ(one: Tensor, other: Tensor) -> bool:
    """Tell whether numbers differ by more than batches of another size may round."""
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-5)
