"""Encode a column of label sets: any number of labels for each sample.

Letters: N samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.config.task_base import SEPARATOR
from finetune.data.table import Column, Numbers, Table
from finetune.data.targets.class_numbers import TARGET_KEY, PartLabels, Target
from finetune.data.targets.label_lists import LabelList, read_lists, refuse_other_separator
from finetune.data.targets.labels import Ordered, ordered
from finetune.errors import DataError


def encode_label_sets(
    column: Column, table: Table, chosen: str | None, about: PartLabels
) -> Target:
    """Return rows of 0 and 1 `(N, C)` for a column in any form that label sets have.

    `chosen` is the separator between two labels that the config names.
    """
    separator = chosen or SEPARATOR
    if isinstance(column, Numbers):
        sets = _sets_of_known(column.values, about)
        return _matrix(column.values, about) if sets is None else _indicators(sets, about)
    texts: list[Any] = [column[row] for row in range(len(column))]
    if not all(isinstance(text, str) for text in texts):
        sets = [
            _label_set(value, separator, about.name, table.place(row))
            for row, value in enumerate(texts)
        ]
        return _indicators(sets, about)
    # A separator that the user wrote decides; the default one only if nothing speaks against it.
    lists = read_lists(texts, about.name, table.place, is_lenient=chosen is not None)
    if lists is None:
        if chosen is None:
            refuse_other_separator(texts, separator, about.name, table.place)
        return _indicators([_cut(text, separator) for text in texts], about)
    return _of_lists(lists, texts, about)


def _of_lists(lists: Sequence[LabelList], texts: Sequence[str], about: PartLabels) -> Target:
    """Return the target for lists that were written as text, with a note that they are read so."""
    first = next(text for text in texts if text.strip())
    note = f"cells of {about.name!r} are read as lists, such as {shown(first)}"
    widths = {len(each.labels) for each in lists}
    # Lists of 0 and 1, all of one length: positions are the labels, not the numbers.
    if len(widths) == 1 and max(widths) > 1 and all(each.is_binary for each in lists):
        rows = torch.tensor([[int(label) for label in each.labels] for each in lists])
        target = _matrix(rows, about)
        note += ": a 0 or 1 for each label"
    else:
        target = _indicators([set(each.labels) for each in lists], about)
    return replace(target, notes=(note, *target.notes)) if about.classes is None else target


def _indicators(sets: Sequence[set[str]], about: PartLabels) -> Target:
    """Return rows of 0 and 1 `(N, C)` for sets of labels."""
    spellings = {label for labels in sets for label in labels}
    sets = [{about.rules.spelt(label) for label in labels} for labels in sets]
    found = sorted({label for labels in sets for label in labels})
    order = about.settled(spellings, found)
    if not order.classes:
        raise DataError(f"column {about.name!r} holds no label", key=TARGET_KEY)
    number = {label: position for position, label in enumerate(order.classes)}
    if not set(found) <= number.keys():
        raise about.unseen(sets, order.classes)
    values = torch.zeros(len(sets), len(order.classes))
    for row, labels in enumerate(sets):
        for label in labels:
            values[row, number[label]] = 1
    return Target(values, order.classes, order.notes)


def _sets_of_known(values: Tensor, about: PartLabels) -> list[set[str]] | None:
    """Return rows of numbers as sets of labels where training has them so; else None.

    In training lists of label numbers differ in length, and in another part all may be of one
    length, which looks like a row of 0 and 1.
    """
    is_of_rows = values.ndim == 2 and not values.is_floating_point()
    if about.classes is None or not is_of_rows or about.rules.names or about.rules.head:
        return None
    if values.shape[1] == len(about.classes):
        return None
    # No label is twice in a set; a row of more than two 0 and 1 repeats one.
    in_order = values.sort(1).values
    if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
        return None
    rows = [{str(label) for label in row} for row in values.tolist()]
    return rows if set().union(*rows) <= set(about.classes) else None


def _matrix(values: Tensor, about: PartLabels) -> Target:
    """Return rows of 0 and 1 with their columns in the order of the classes."""
    if values.ndim != 2 or not bool(((values == 0) | (values == 1)).all()):
        raise DataError(
            f"column {about.name!r} must hold a row of 0 and 1 a sample, or label names",
            hint="one column of 0 and 1 for each label: target: [first, second]; numbers of labels "
            'as texts: ["3", "1"]',
            key=TARGET_KEY,
        )
    names = about.rules.names or tuple(str(position) for position in range(values.shape[1]))
    order = ordered(names, about.rules) if about.classes is None else Ordered(about.classes)
    # A head may have more outputs than the data has labels; without one they must be equally many.
    is_whole = len(names) == len(order.classes) or bool(about.rules.head)
    if not set(names) <= set(order.classes) or not is_whole:
        raise DataError(
            f"column {about.name!r} has {len(names)} labels, not {len(order.classes)}",
            key=TARGET_KEY,
        )
    # Outputs of the head that no column is about are never the right answer here.
    rows = torch.zeros(len(values), len(order.classes))
    for place, name in enumerate(order.classes):
        if name in names:
            rows[:, place] = values[:, names.index(name)]
    notes = order.notes
    if values.shape[1] == 1 and about.classes is None and not about.rules.names:
        # A list of one class number looks alike.
        notes += (
            f"column {about.name!r} holds one 0 or 1 a sample, read as one label that a sample has "
            'or lacks; numbers of labels are written as texts, such as ["1"]',
        )
    return Target(rows, order.classes, notes)


def _cut(text: str, separator: str) -> set[str]:
    """Return the labels in a text."""
    return {label.strip() for label in text.split(separator) if label.strip()}


def _label_set(value: Any, separator: str, name: str, place: str) -> set[str]:
    """Return the labels in a cell of JSON or Parquet: a list, or a text with separators."""
    if isinstance(value, str):
        return _cut(value, separator)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple) and all(isinstance(label, str | int) for label in value):
        return {str(label) for label in value}
    raise DataError(
        f"column {name!r} holds {shown(value)} in {place}, which is no set of labels",
        key=TARGET_KEY,
    )
