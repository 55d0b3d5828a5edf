"""A list of tasks over one network: each reads its own output and learns its own column."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from finetune.config.task_list_keys import ListedTask, TaskList
from finetune.errors import FinetuneError
from finetune.tasks.records import Asked, PredictionRecord
from finetune.tasks.task import Task
from finetune.tasks.views import View
from finetune.tasks.weighted_loss import WeightedLoss

Build = Callable[[ListedTask], Task]
"""Builds one task of a list as if it were the only one."""


@dataclass(frozen=True, slots=True)
class RecordOfTasks:
    """What each task of a list says of one sample."""

    by_task: Mapping[str, PredictionRecord]

    def row(self) -> dict[str, Any]:
        """Return a dict of plain values for each task, by its name."""
        return {name: record.row() for name, record in self.by_task.items()}


def list_of_tasks(config: TaskList, build: Build) -> Task:
    """Build the tasks of a list as one task.

    Its losses are theirs, times the weight of their task. Each is a mean over the samples of the
    window that have the target. Names of losses and metrics begin with that of their task.

    Raises:
        FinetuneError: one of the tasks cannot be built.
    """
    parts: list[tuple[ListedTask, Task]] = []
    for number, one in enumerate(config.tasks):
        with _about(number):
            parts.append((one, build(one)))
    views = {one.label: View(one.label, one.output, one.target) for one, _ in parts}
    return Task(
        tuple(
            _weighted(loss, one, views[one.label]) for one, task in parts for loss in task.losses
        ),
        tuple(metric.seen_by(views[one.label]) for one, task in parts for metric in task.metrics),
        partial(_read, [(one, task) for one, task in parts]),
        owners=tuple(one.label for one, task in parts for _ in task.losses),
    )


def _weighted(loss: WeightedLoss, config: ListedTask, view: View) -> WeightedLoss:
    """Return a loss of one task as one of the whole list."""
    weight = loss.weight * config.weight
    return replace(loss, name=f"{config.label}/{loss.name}", weight=weight, view=view)


@contextmanager
def _about(number: int) -> Iterator[None]:
    """Make errors about keys of `task` name the task in the list."""
    try:
        yield
    except FinetuneError as error:
        if error.key[:1] == ("task",):
            # A task is built as if it were the only one, so its errors know no place in a list.
            error.key = ("task", "tasks", number, *error.key[1:])
        raise


def _read(
    parts: Sequence[tuple[ListedTask, Task]],
    outputs: Mapping[str, Any],
    asked: Asked | None = None,
) -> list[RecordOfTasks]:
    """Return what each task reads of its output, for each sample."""
    read = {one.label: task.read(outputs[one.output], asked) for one, task in parts}
    return [
        RecordOfTasks(dict(zip(read, records, strict=True)))
        for records in zip(*read.values(), strict=True)
    ]
