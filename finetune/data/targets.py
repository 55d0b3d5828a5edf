"""What the network learns, as tensors: class numbers, label sets, numbers.

Letters: N samples, C classes.
"""

from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from finetune.config.task import (
    ClassificationTask,
    ImportTask,
    MultilabelTask,
    RegressionTask,
    Task,
)
from finetune.data.images import Images
from finetune.data.table import Column, Listed, Numbers, Table, read_cells, refuse_gaps
from finetune.errors import DataError

_KEY = ("data", "target")


@dataclass(frozen=True, slots=True)
class Target:
    """Targets as a tensor `(N, ...)`, and the names of the classes where there are any."""

    values: Tensor
    classes: tuple[str, ...] | None


def encode_target(
    table: Table, name: str, task: Task, *, classes: tuple[str, ...] | None, part: str
) -> Target:
    """Turn the column `name` into what the losses of `task` take.

    Args:
        table: The samples.
        name: The column.
        task: Says what the column means.
        classes: Names known from training, each the place of its number; None to find them here.
        part: Name of the part, for messages.

    Raises:
        DataError: a value is missing, means nothing to the task, or is a label not among `classes`.
    """
    column = read_cells(table.columns[name], as_text=isinstance(task, MultilabelTask))
    if isinstance(column, Numbers):
        refuse_gaps(name, column, table)
    match task:
        case ClassificationTask():
            return _classes(column, table, name, classes, part)
        case MultilabelTask():
            return _label_sets(column, table, name, task.separator, classes, part)
        case RegressionTask():
            return Target(_numbers(column, table, name).float(), None)
        case ImportTask():
            if isinstance(column, Listed) and column.kind == "text":
                return _classes(column, table, name, classes, part)
            return Target(_numbers(column, table, name), None)
        case _:
            assert_never(task)


def refuse_unseen(
    trained: Tensor, target: Tensor, classes: tuple[str, ...], part: str, hint: str | None
) -> None:
    """Raise a DataError if `target` holds a class that `trained` never does.

    Args:
        trained: Targets of the training samples, `(N,)` or `(N, C)`.
        target: Targets of another part.
        classes: Names of the classes.
        part: Name of that other part.
        hint: What to do about it.
    """
    missing = _present(target, len(classes)) & ~_present(trained, len(classes))
    if bool(missing.any()):
        label = classes[int(missing.nonzero()[0])]
        raise _unseen(label, part, hint)


def _present(target: Tensor, num_classes: int) -> Tensor:
    if target.ndim == 2:
        return target.bool().any(dim=0)
    return torch.bincount(target, minlength=num_classes) > 0


def _unseen(label: str, part: str, hint: str | None) -> DataError:
    return DataError(f"label {label!r} of {part} is never seen in training", hint=hint, key=_KEY)


def _classes(
    column: Column, table: Table, name: str, classes: tuple[str, ...] | None, part: str
) -> Target:
    if isinstance(column, Numbers):
        labels = [str(number) for number in _whole(column, table, name).tolist()]
        found = tuple(sorted(set(labels), key=int))
    else:
        labels = _texts(column, table, name)
        found = tuple(sorted(set(labels)))
    return _numbered(labels, classes or found, part)


def _numbered(labels: list[str], classes: tuple[str, ...], part: str) -> Target:
    number = {label: position for position, label in enumerate(classes)}
    unseen = next((label for label in labels if label not in number), None)
    if unseen is not None:
        raise _unseen(unseen, part, None)
    return Target(torch.tensor([number[label] for label in labels]), classes)


def _whole(column: Numbers, table: Table, name: str) -> Tensor:
    values = column.values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds {tuple(values.shape[1:])} numbers a sample, classification "
            "needs one class",
            hint="task: {type: multilabel} takes a row of 0 and 1",
            key=_KEY,
        )
    if values.is_floating_point() and not bool((values == values.round()).all()):
        row = int((values != values.round()).nonzero()[0])
        raise DataError(
            f"column {name!r} holds {values[row].item():g} in {table.place(row)}; classes are "
            "whole numbers or text",
            hint="task: {type: regression} learns numbers",
            key=_KEY,
        )
    return values.long()


def _texts(column: Column, table: Table, name: str) -> list[str]:
    if isinstance(column, Images) or not isinstance(column, Listed) or column.kind != "text":
        raise DataError(f"column {name!r} holds neither text nor whole numbers", key=_KEY)
    labels = list(column.values)
    if "" in labels:
        raise DataError(
            f"column {name!r} has no label in {table.place(labels.index(''))}", key=_KEY
        )
    return labels


def _label_sets(
    column: Column,
    table: Table,
    name: str,
    separator: str,
    classes: tuple[str, ...] | None,
    part: str,
) -> Target:
    if isinstance(column, Numbers):
        return _matrix(column.values, name, classes)
    sets = [
        _label_set(column[row], separator, name, table.place(row)) for row in range(len(column))
    ]
    classes = classes or tuple(sorted({label for labels in sets for label in labels}))
    number = {label: position for position, label in enumerate(classes)}
    values = torch.zeros(len(sets), len(classes))
    for row, labels in enumerate(sets):
        for label in labels:
            if label not in number:
                raise _unseen(label, part, None)
            values[row, number[label]] = 1
    return Target(values, classes)


def _matrix(values: Tensor, name: str, classes: tuple[str, ...] | None) -> Target:
    if values.ndim != 2 or not bool(((values == 0) | (values == 1)).all()):
        raise DataError(
            f"column {name!r} must hold a row of 0 and 1 a sample, or label names", key=_KEY
        )
    names = tuple(str(position) for position in range(values.shape[1]))
    if classes is not None and classes != names:
        raise DataError(f"column {name!r} has {len(names)} labels, not {len(classes)}", key=_KEY)
    return Target(values.float(), names)


def _label_set(value: Any, separator: str, name: str, place: str) -> set[str]:
    if isinstance(value, str):
        return {label.strip() for label in value.split(separator) if label.strip()}
    if isinstance(value, list | tuple) and all(isinstance(label, str | int) for label in value):
        return {str(label) for label in value}
    raise DataError(
        f"column {name!r} holds {value!r} in {place}, which is no set of labels", key=_KEY
    )


def _numbers(column: Column, table: Table, name: str) -> Tensor:
    if isinstance(column, Numbers):
        return column.values
    example = repr(column[0]) if isinstance(column, Listed) else "an image"
    raise DataError(
        f"column {name!r} holds {example} in {table.place(0)} where a number is needed", key=_KEY
    )
