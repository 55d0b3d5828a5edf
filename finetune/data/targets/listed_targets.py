"""Targets of a list of tasks: a column for each task, in which classes and numbers may be missing.

They go beside the inputs, as columns for the loss do. Letters: N samples.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.task_list_keys import AnyTask, ListedTask, TaskList
from finetune.data.gaps import filled_columns
from finetune.data.readers.chunks import shown_names
from finetune.data.table import Column, Listed, Numbers, Table
from finetune.data.targets.class_counts import (
    Counted,
    class_counts,
    notes_on_classes,
    notes_on_constants,
)
from finetune.data.targets.class_numbers import refuse_unseen
from finetune.data.targets.encode import encode_target
from finetune.data.targets.labels import LabelRules
from finetune.errors import DataError, did_you_mean

KNOWN = "known: "
"""Beginning of the name of a column of a batch, before that of a target: where there is one."""


@dataclass(frozen=True, slots=True)
class ListedTargets:
    """The targets of a list of tasks for one part of the data."""

    columns: Mapping[str, Numbers] = field(default_factory=dict)
    """Targets `(N, ...)` by column; where some are missing also `(N,)` bool under `KNOWN`."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes, by column that has some."""
    notes: tuple[str, ...] = ()


NO_LIST = ListedTargets()
"""Of a single task, whose target is another thing."""


@dataclass(frozen=True, slots=True)
class TargetClasses:
    """Classes of one target of a list of tasks."""

    names: tuple[str, ...]
    """In the order of their numbers."""
    counts: tuple[int, ...]
    """Training samples of each class, or with each label."""
    samples: int
    """Training samples that have the target."""


def with_listed_targets(config: DataConfig, task: AnyTask) -> DataConfig:
    """Return `data:` with the targets of a list of tasks among the columns for the loss."""
    if not isinstance(task, TaskList):
        return config
    return config.model_copy(update={"loss_columns": (*config.loss_columns, *task.targets)})


def may_be_empty(config: DataConfig, task: AnyTask) -> frozenset[str]:
    """Return the columns that may have empty cells: those that a step fills, targets of a list."""
    return filled_columns(config) | frozenset(task.targets if isinstance(task, TaskList) else ())


def refuse_missing_targets(task: TaskList, inputs: Collection[str], known: Collection[str]) -> None:
    """Raise `DataError` if a column that a task learns is not there, or is an input."""
    for number, one in enumerate(task.tasks):
        key = ("task", "tasks", number, "target")
        if one.target in inputs:
            raise DataError(f"column {one.target!r} is both input and target", key=key)
        if one.target not in known:
            raise DataError(
                f"no column {one.target!r}; there are: {shown_names(known)}",
                hint=did_you_mean(one.target, known),
                key=key,
            )


def encode_listed(
    table: Table,
    task: AnyTask,
    *,
    classes: Mapping[str, tuple[str, ...]],
    part: str,
    rules: LabelRules,
) -> ListedTargets:
    """Return the targets of a list of tasks; none for a single task.

    Args:
        table: The samples.
        task: The tasks.
        classes: Classes of the training part by column; those of other columns are found.
        part: Name of the part, for messages.
        rules: How labels become classes.

    Raises:
        DataError: a value means nothing to its task, is a label not in `classes`, or all of a
            column are missing.
    """
    columns: dict[str, Numbers] = {}
    found: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for number, one in enumerate(task.tasks if isinstance(task, TaskList) else ()):
        name = one.target
        # Several tasks may learn one column, which is encoded once.
        if name in columns:
            continue
        is_known = _known(table.columns[name], one)
        # Known ones alone: an empty cell would be refused, or become a class of its own.
        some = table if bool(is_known.all()) else table.take(is_known.nonzero().squeeze(1))
        with _about(number):
            if not len(some):
                raise DataError(f"column {name!r} is empty in all rows of {part}", key=_KEY)
            encoded = encode_target(
                some, name, one, classes=classes.get(name), part=part, rules=rules
            )
        assert isinstance(encoded.values, Tensor)
        columns[name] = Numbers(_spread(encoded.values, is_known))
        if len(some) < len(table):
            columns[KNOWN + name] = Numbers(is_known)
            gone = len(table) - len(some)
            notes.append(
                f"column {name!r} is empty in {gone:,} of {len(table):,} rows of {part}, which do "
                f"not count for task {one.label!r}"
            )
        if encoded.classes is not None:
            found[name] = encoded.classes
        notes += encoded.notes
    return ListedTargets(columns, found, tuple(notes))


_KEY = ("data", "target")


@contextmanager
def _about(number: int) -> Iterator[None]:
    """Make errors about `data.target` name the target of a task in the list."""
    try:
        yield
    except DataError as error:
        if error.key == _KEY:
            error.key = ("task", "tasks", number, "target")
        raise


def _known(column: Column, task: ListedTask) -> Tensor:
    """Return which samples have a target, `(N,)` bool."""
    everywhere = torch.ones(len(column), dtype=torch.bool)
    # An empty set of labels is a target like any other.
    if task.learns == "labels":
        return everywhere
    if isinstance(column, Numbers):
        values = column.values
        return ~values.isnan().flatten(1).any(1) if values.ndim > 1 else ~values.isnan()
    if not isinstance(column, Listed):
        return everywhere
    cells: Sequence[object] = column.values
    return torch.tensor([not _is_empty(cell) for cell in cells], dtype=torch.bool)


def _is_empty(cell: object) -> bool:
    """Tell whether a cell holds nothing."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and cell != cell)


def _spread(values: Tensor, is_known: Tensor) -> Tensor:
    """Return values of the known samples as those of all; 0 stands where there is none."""
    if bool(is_known.all()):
        return values
    # 0 may be a class as well; the column under `KNOWN` says which rows count.
    whole = values.new_zeros(len(is_known), *values.shape[1:])
    whole[is_known] = values
    return whole


def known_target(columns: Mapping[str, object], name: str) -> Tensor:
    """Return the targets of a column `(N, ...)`, without those that are missing."""
    target, known = columns[name], columns.get(KNOWN + name)
    assert isinstance(target, Numbers)
    return target.values[known.values] if isinstance(known, Numbers) else target.values


def classes_and_counts(
    columns: Mapping[str, object], classes: Mapping[str, tuple[str, ...]]
) -> dict[str, TargetClasses]:
    """Return the classes with the number of samples of each, by column with classes."""
    found = {}
    for name, names in classes.items():
        target = known_target(columns, name)
        counts = tuple(class_counts(target, len(names)).tolist())
        found[name] = TargetClasses(names, counts, len(target))
    return found


Beside = Mapping[str, Mapping[str, object]]
"""The columns for the loss of each part."""


def notes_on_listed(
    parts: Beside, classes: Mapping[str, tuple[str, ...]], task: TaskList
) -> list[str]:
    """Return notes on the classes, or the constant numbers, of each task of a list in each part."""
    notes = []
    for one in task.tasks:
        if (names := classes.get(one.target)) is not None:
            counted = {
                part: Counted.of(known_target(columns, one.target), len(names))
                for part, columns in parts.items()
            }
            found = notes_on_classes(counted, names, one)
        else:
            targets = {
                part: known_target(columns, one.target)
                for part, columns in parts.items()
                if isinstance(columns.get(one.target), Numbers)
            }
            found = notes_on_constants(targets, one.target)
        notes += [f"task {one.label!r}: {note}" for note in found]
    return notes


def refuse_unseen_in_list(
    parts: Beside, classes: Mapping[str, tuple[str, ...]], hint: str | None
) -> None:
    """Raise `DataError` if a part holds a class of one task that the training part lacks."""
    for column, names in classes.items():
        targets = {part: known_target(columns, column) for part, columns in parts.items()}
        for part, target in targets.items():
            about = f"column {column!r} in the {part} part"
            refuse_unseen(targets["train"], target, names, about, hint)
