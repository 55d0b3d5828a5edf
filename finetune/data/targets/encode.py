"""Encode the target column: class numbers, label sets, numbers, masks.

Letters: N samples, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import assert_never

from torch import Tensor

from finetune.config.messages import shown
from finetune.config.task_keys import SpanTask, Task
from finetune.data.cells import no_number, read_cells, words_as_numbers
from finetune.data.gaps import refuse_gaps
from finetune.data.images import Images
from finetune.data.ragged import Ragged
from finetune.data.readers.mapped import Distinct
from finetune.data.samples import IGNORED
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.data.targets.answers import encode_answers
from finetune.data.targets.boxes import as_rows, boxes_of
from finetune.data.targets.class_numbers import TARGET_KEY, PartLabels, Target
from finetune.data.targets.label_sets import encode_label_sets
from finetune.data.targets.labels import LabelRules
from finetune.data.targets.loss_columns import holds_lists, sequence_of, whole_numbers
from finetune.data.targets.masks import encode_masks
from finetune.data.targets.words import refuse_uneven, tags_of
from finetune.errors import DataError


def encode_target(  # noqa: C901 - one case for each form
    table: Table,
    name: str,
    task: Task,
    *,
    classes: tuple[str, ...] | None,
    part: str,
    rules: LabelRules,
    skips: bool = False,
) -> Target:
    """Return the column `name` as what the losses of `task` take.

    Args:
        table: The samples.
        name: The column.
        task: Decides what the column means.
        classes: Classes of the training part, in the order of their numbers; None to find them.
        part: Name of the part, for messages.
        rules: How labels become classes.
        skips: Whether samples with an unreadable mask are passed over.

    Raises:
        DataError: a value is missing, means nothing to the task, or is a label not in `classes`.
    """
    labels = PartLabels(name, part, rules, classes, table.place)
    # Text even if all cells are digits: 3 is then a set of one label, or the tag of one word.
    column = _of_target(table, name, as_text=task.learns in ("labels", "tags", "span"))
    refuse_masks(name, column, task)
    match task.learns:
        case "class":
            return _classes(column, table, labels)
        case "labels":
            return encode_label_sets(column, table, task.chosen_separator, labels)
        case "numbers":
            numbers = _numbers(column, table, name).float()
            refuse_outside(name, numbers, task.target_bounds, table.place)
            return Target(numbers, None)
        case "tags":
            return _word_tags(column, table, labels)
        case "mask":
            return Target(*encode_masks(column, table, name, task, classes, skips=skips))
        case "span":
            may_be = isinstance(task, SpanTask) and task.may_be_unanswered
            return Target(encode_answers(table, name, may_be_unanswered=may_be), None)
        case "boxes":
            return _boxes(column, table, labels)
        case "nothing" | "any":  # nothing has no column, so it is never encoded
            return _of_any_form(column, table, labels)
        case _:
            assert_never(task.learns)


def _boxes(column: Column, table: Table, about: PartLabels) -> Target:
    """Return boxes with class numbers `(N, K, 5)`."""
    boxes = boxes_of(column, table, about.name)
    labels = _numbered(boxes.labels, about)
    assert isinstance(labels.values, Ragged)
    notes = (*boxes.notes, *labels.notes)
    return replace(labels, values=as_rows(boxes.corners, labels.values), notes=notes)


def refuse_masks(name: str, column: Column, task: Task) -> None:
    """Raise `DataError` if a target holds masks and the task takes none."""
    is_of_masks = isinstance(column, Images) and column.mode == "mask"
    if is_of_masks and task.learns not in ("mask", "any"):
        raise DataError(
            f"column {name!r} holds masks, which task {task.type!r} does not take",
            hint="task: {type: segmentation} learns a class for each pixel, and a task of your own "
            "takes them: task: {type: import, path: ...}",
            key=TARGET_KEY,
        )


def _of_any_form(column: Column, table: Table, about: PartLabels) -> Target:
    """Return masks, sequences, classes or numbers, whatever the column holds."""
    if isinstance(column, Images) and column.mode == "mask":
        return Target(column, None)
    if holds_lists(column):
        return _tags(column, table, about)
    # Words become classes even for an imported task: tensors hold no text.
    if isinstance(column, Listed) and column.kind == "text":
        return _classes(column, table, about)
    return Target(_numbers(column, table, about.name), None)


def refuse_outside(
    name: str,
    values: Tensor,
    bounds: tuple[float, float] | None,
    place: Callable[[int], str],
) -> None:
    """Raise `DataError` for the first target that is none of the numbers that a task takes.

    Args:
        name: Name of the target column.
        values: The targets `(N, ...)`.
        bounds: Least and greatest number; None if any number is taken.
        place: Returns the place of a row, for messages.
    """
    if bounds is None:
        return
    low, high = bounds
    rows = ((values < low) | (values > high)).reshape(len(values), -1).any(1).nonzero().flatten()
    if len(rows):
        row = int(rows[0])
        worst = values[row].reshape(-1)
        found = worst[(worst < low) | (worst > high)][0].item()
        raise DataError(
            f"column {name!r} holds {found:g} in {place(row)}{and_more(len(rows) - 1)}; the task "
            f"takes {low:g} to {high:g}",
            key=TARGET_KEY,
        )


def _classes(column: Column, table: Table, about: PartLabels) -> Target:
    """Return class numbers `(N,)` for a column of whole numbers or texts."""
    if isinstance(column, Numbers):
        different, numbers = _whole(column, table, about.name).unique(return_inverse=True)
        labels = Distinct([str(number) for number in different.tolist()], numbers.numpy())
        # By value: as texts, class 10 would come before class 2.
        spellings, found = set(labels.values), tuple(sorted(set(labels.values), key=int))
    else:
        texts = _texts(column, table, about.name)
        labels = texts._replace(values=[about.rules.spelt(text) for text in texts.values])
        spellings, found = set(texts.values), tuple(sorted(set(labels.values)))
    return about.numbered(labels, spellings, found)


def _tags(column: Column, table: Table, about: PartLabels) -> Target:
    """Return sequences of whole numbers as they are, those of words as numbers of classes."""
    rows = [
        sequence_of(column[row], about.name, table.place(row), TARGET_KEY)
        for row in range(len(column))
    ]
    if (plain := whole_numbers(rows)) is not None:
        return Target(Ragged.of(plain, pad=IGNORED, length=None), None)
    mixed = next((n for n, row in enumerate(rows) if row and type(row[0]) is int), None)
    if mixed is not None:
        raise DataError(f"column {about.name!r} mixes words and numbers, in {table.place(mixed)}")
    return _numbered([[str(word) for word in row] for row in rows], about)


def _word_tags(column: Column, table: Table, about: PartLabels) -> Target:
    """Return sequences of class numbers for the tags of words, one tag a word."""
    rows = tags_of(column)
    if None in rows:
        row = rows.index(None)
        raise DataError(
            f"column {about.name!r} holds {shown(column[row])} in {table.place(row)}, which is no "
            "list of tags",
            hint='a list, such as ["O", "B-name"], or a text with blanks between the tags',
            key=TARGET_KEY,
        )
    target = _numbered([[str(tag) for tag in row or ()] for row in rows], about)
    assert isinstance(target.values, Ragged)
    refuse_uneven(table, about.name, target.values)
    return target


def _numbered(rows: Sequence[Sequence[str]], about: PartLabels) -> Target:
    """Return sequences of labels as numbers of classes."""
    words = {word for row in rows for word in row}
    # Numbers by value: as texts, class 10 would come before class 2.
    is_of_numbers = all(word.isdecimal() for word in words)
    found = sorted({about.rules.spelt(word) for word in words}, key=int if is_of_numbers else None)
    order = about.settled(words, found)
    number = {label: position for position, label in enumerate(order.classes)}
    if not set(found) <= number.keys():
        raise about.unseen(
            [{about.rules.spelt(word) for word in row} for row in rows], order.classes
        )
    numbers = [[number[about.rules.spelt(word)] for word in row] for row in rows]
    return Target(Ragged.of(numbers, pad=IGNORED, length=None), order.classes, order.notes)


def _whole(column: Numbers, table: Table, name: str) -> Tensor:
    """Return numbers as int64 `(N,)`; raise if one has a fraction or a sample has several."""
    values = column.values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds {tuple(values.shape[1:])} numbers a sample, classification "
            "needs one class",
            hint="task: {type: multilabel} takes a row of 0 and 1",
            key=TARGET_KEY,
        )
    if values.is_floating_point() and not bool((values == values.round()).all()):
        row = int((values != values.round()).nonzero()[0])
        raise DataError(
            f"column {name!r} holds {values[row].item():g} in {table.place(row)}; classes are "
            "whole numbers or text",
            hint="task: {type: regression} learns numbers",
            key=TARGET_KEY,
        )
    return values.long()


def _texts(column: Column, table: Table, name: str) -> Distinct:
    """Return the texts of a column; raise if it is something else or a cell is empty."""
    if isinstance(column, Images) or not isinstance(column, Listed) or column.kind != "text":
        cells = column.values if isinstance(column, Listed) else ()
        row = next((n for n, cell in enumerate(cells) if not isinstance(cell, str | int)), None)
        where = "" if row is None else f": {shown(cells[row])} in {table.place(row)}"
        raise DataError(
            f"column {name!r} holds neither text nor whole numbers{where}", key=TARGET_KEY
        )
    texts = column.distinct()
    # In order of their first cells, so that the first row without a label is named.
    empty = next((number for number, text in enumerate(texts.values) if not text.strip()), None)
    if empty is not None:
        row = int((texts.numbers == empty).argmax())
        others = int((texts.numbers == empty).sum()) - 1
        raise DataError(
            f"column {name!r} has no label in {table.place(row)}{and_more(others)}",
            hint="fill in the label, or leave such rows out",
            key=TARGET_KEY,
        )
    return texts


def _of_target(table: Table, name: str, *, as_text: bool) -> Column:
    """Return the cells of a target as numbers or texts; raise for gaps among numbers."""
    column = read_cells(table.columns[name], as_text=as_text)
    if isinstance(column, Numbers):
        refuse_gaps(name, column, table.place, table.columns[name], is_target=True)
    return column


def refuse_no_numbers(table: Table, name: str) -> None:
    """Raise `DataError` if a target is not numbers, or has gaps."""
    _numbers(_of_target(table, name, as_text=False), table, name)


def _numbers(column: Column, table: Table, name: str) -> Tensor:
    """Return a column of numbers; raise for anything else, with a hint for the target."""
    if isinstance(column, Numbers):
        return column.values
    error = no_number(name, column, table.place, TARGET_KEY)
    if error.hint == words_as_numbers(name):
        error.hint = "task: {type: classification} learns words as classes"
    raise error
