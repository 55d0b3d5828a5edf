"""Compare labels that new samples bring along with the classes of a run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.config.task_keys import Task
from finetune.data.table import Listed, Table, settle
from finetune.data.targets.class_numbers import Target
from finetune.data.targets.encode import encode_target
from finetune.data.targets.labels import LabelRules, folded, twin_of
from finetune.errors import DataError, named


def notes_on_new_labels(
    labels: Sequence[Any], column: str, classes: Sequence[str], *, fold: bool
) -> list[str]:
    """Return notes on labels that a run does not know, and on classes that no sample has.

    Args:
        labels: Cells of the label column; empty if the samples have none.
        column: Name of the column.
        classes: Classes of the run.
        fold: Whether labels that differ only in case and blanks are one.
    """
    found = [_as_text(label) for label in labels if label is not None and label != ""]
    if not found:
        return []
    spelt = folded if fold else str
    known, here = set(map(spelt, classes)), set(map(spelt, found))
    strange = [label for label in found if spelt(label) not in known]
    absent = [name for name in classes if spelt(name) not in here]
    notes = []
    if strange:
        # The usual reason is a spelling that differs.
        twin = twin_of(strange[0], classes)
        more = "" if twin is None else f"; the run knows {named([twin])}"
        which = named(list(dict.fromkeys(strange)))
        count = f"{len(strange):,} of {len(found):,}"
        notes.append(f"{count} labels of {column!r} are no class of the run: {which}{more}")
    if absent:
        count = f"{len(absent)} of {len(classes)} classes of the run"
        notes.append(f"{count} are no label of {column!r}: {named(absent)}")
    return notes


def notes_on_new_sets(
    cells: Sequence[Any],
    column: str,
    classes: Sequence[str],
    task: Task,
    *,
    fold: bool,
) -> list[str]:
    """Return the notes of `notes_on_new_labels` for cells with several labels each.

    The cells are read as training reads them.

    Args:
        cells: Cells of the label column; empty if the samples have none.
        column: Name of the column.
        classes: Classes of the run.
        task: Decides how labels are separated in a cell.
        fold: As for `notes_on_new_labels`.
    """
    filled = [n for n, cell in enumerate(cells) if cell is not None and str(cell).strip()]
    if not filled:
        return []
    try:
        found = _sets(cells, filled, column, task, fold=fold)
    except DataError as error:
        # Labels are a by-product of prediction: cells that cannot be read must not stop it.
        return [f"the labels of the input are not compared with those of the run: {error.message}"]
    names = found.classes or ()
    assert isinstance(found.values, Tensor)  # rows of 0 and 1
    labels = [names[place] for place in found.values.nonzero()[:, 1].tolist()]
    return notes_on_new_labels(labels, column, classes, fold=fold)


def _sets(
    cells: Sequence[Any], filled: Sequence[int], column: str, task: Task, *, fold: bool
) -> Target:
    """Return the filled cells as sets of labels; an empty cell means no label."""
    given = [cells[row] for row in filled]
    rows = Table({}, torch.tensor(filled), "the input")
    is_text = all(isinstance(cell, str) for cell in given)
    values = Listed(given, "cells") if is_text else settle(column, given, rows.told)
    table = Table({column: values}, rows.rows, rows.name)
    rules = LabelRules(fold=fold, order="sorted")
    return encode_target(table, column, task, classes=None, part="the input", rules=rules)


def _as_text(label: Any) -> str:
    """Return a label as training writes it: whole numbers without a point."""
    is_whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if is_whole else label)
