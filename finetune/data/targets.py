"""Encode the target column: class numbers, label sets, numbers, masks.

Letters: N samples, C classes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.config.task_base import SEPARATOR
from finetune.config.task_keys import SpanTask, Task
from finetune.data.answers import encode_answers
from finetune.data.boxes import as_rows, boxes_of
from finetune.data.cells import no_number, read_cells, words_as_numbers
from finetune.data.class_counts import class_counts
from finetune.data.gaps import refuse_gaps
from finetune.data.images import Images
from finetune.data.label_lists import LabelList, read_lists, refuse_other_separator
from finetune.data.labels import (
    LabelRules,
    Ordered,
    notes_on_gaps,
    notes_on_spelling,
    ordered,
    remedy_for_rare,
    twin_of,
)
from finetune.data.loss_columns import holds_lists, sequence_of, whole_numbers
from finetune.data.masks import encode_masks
from finetune.data.ragged import Ragged
from finetune.data.readers.mapped import Distinct
from finetune.data.samples import IGNORED
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.data.words import refuse_uneven, tags_of
from finetune.errors import DataError, named

_KEY = ("data", "target")
_LONG = 150
"""Most characters of a list of labels in a message; a longer one is given as a count."""
_MOST_NAMED = 3
"""Number of unknown labels to name; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Targets, and the names of the classes if there are any.

    They are a tensor `(N, ...)`, masks, or sequences such as the tags of a text's words.
    """

    values: Tensor | Images | Numbers | Ragged
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    """Lines to report to the user about the labels."""


@dataclass(frozen=True, slots=True)
class _Labels:
    """What is known about a part's labels before they become numbers."""

    name: str
    """Name of the column."""
    part: str
    rules: LabelRules
    classes: tuple[str, ...] | None
    """Classes of the training part; None to find them in this part."""
    place: Callable[[int], str]
    """Returns the place of a row, for messages."""

    def numbered(self, labels: Distinct, spellings: set[str], found: Sequence[str]) -> Target:
        """Return the class numbers `(N,)` of labels; for the other arguments see `settled`."""
        order = self.settled(spellings, found)
        number = {label: position for position, label in enumerate(order.classes)}
        if not set(labels.values) <= number.keys():
            which = [labels.values[place] for place in labels.numbers.tolist()]
            raise self.unseen([{label} for label in which], order.classes)
        values = torch.tensor([number[label] for label in labels.values])
        return Target(values[labels.numbers], order.classes, order.notes)

    def unseen(self, sets: Sequence[set[str]], classes: Sequence[str]) -> DataError:
        """Return the error for labels that are no classes; it counts them and names a row of each.

        Args:
            sets: The labels of each sample.
            classes: The classes of training.
        """
        known, count = set(classes), Counter[str]()
        first: dict[str, int] = {}
        for row, labels in enumerate(sets):
            for label in sorted(labels - known):
                count[label] += 1
                first.setdefault(label, row)
        each = [
            f"{shown(label)} ({num}, {'in' if num == 1 else 'first in'} {self._row(first[label])})"
            for label, num in count.most_common(_MOST_NAMED)
        ]
        more = f" and {len(count) - _MOST_NAMED} more" if len(count) > _MOST_NAMED else ""
        there = named(classes)
        # A message with hundreds of labels hides those that matter.
        there = there if len(there) <= _LONG else f"{len(classes)} labels"
        told = f": unknown are {', '.join(each)}{more}; training has {there}"
        return _unseen(next(iter(first)), self.part, classes, None, told)

    def _row(self, number: int) -> str:
        """Return the place of a row, without the name of the part if the message has it already."""
        return self.place(number).removesuffix(f" of {self.part}")

    def settled(self, spellings: set[str], found: Sequence[str]) -> Ordered:
        """Return the classes: those that were given, or those found, in order and with notes.

        Args:
            spellings: Each distinct label as written.
            found: Each distinct label as it is compared, sorted.
        """
        if self.classes is not None:
            return Ordered(self.classes)
        order = ordered(found, self.rules)
        written = sorted(spellings)
        about = (*notes_on_gaps(written), *notes_on_spelling(written, self.rules))
        return Ordered(order.classes, (*about, *order.notes))


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
    labels = _Labels(name, part, rules, classes, table.place)
    column = read_cells(table.columns[name], as_text=task.learns in ("labels", "tags", "span"))
    if isinstance(column, Numbers):
        refuse_gaps(name, column, table.place, table.columns[name], is_target=True)
    refuse_masks(name, column, task)
    match task.learns:
        case "class":
            return _classes(column, table, labels)
        case "labels":
            return _label_sets(column, table, task.chosen_separator, labels)
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


def _boxes(column: Column, table: Table, about: _Labels) -> Target:
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
            key=_KEY,
        )


def _of_any_form(column: Column, table: Table, about: _Labels) -> Target:
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
            key=_KEY,
        )


def refuse_unseen(
    trained: Tensor,
    target: Tensor,
    classes: tuple[str, ...],
    part: str,
    hint: str | None,
    *,
    drawn: Sequence[Tensor] = (),
) -> None:
    """Raise `DataError` if `target` has a class that `trained` never has.

    Args:
        trained: Targets of the training samples, `(N,)` or `(N, C)`.
        target: Targets of another part.
        classes: Names of the classes.
        part: Name of that other part.
        hint: The remedy.
        drawn: Targets of all parts of a source that was split; empty if each part has its own.
    """
    num_trained, num_here = (class_counts(each, len(classes)) for each in (trained, target))
    missing = (num_here > 0) & (num_trained == 0)
    if bool(missing.any()):
        number = int(missing.nonzero()[0])
        label, rare = classes[number], ""
        count = sum(int(class_counts(each, len(classes))[number]) for each in drawn)
        if count < len(drawn):
            # No other split would help, so the hint names none.
            rare = (
                f": it has {count} sample{'s' if count > 1 else ''}, too few for {len(drawn)} parts"
            )
            hint = remedy_for_rare(label, count, classes)
        raise _unseen(label, part, [name for name in classes if name != label], hint, rare)


def _unseen(
    label: str, part: str, classes: Sequence[str], hint: str | None, both: str = ""
) -> DataError:
    """Return the error for a label that training never sees; the hint names a similar one."""
    if (twin := twin_of(label, classes)) is not None:
        hint = f"training has {twin!r}; data.labels: {{fold: true}} makes them one label"
    return DataError(
        f"label {shown(label)} of {part} is never seen in training{both}", hint=hint, key=_KEY
    )


def _classes(column: Column, table: Table, about: _Labels) -> Target:
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


def _tags(column: Column, table: Table, about: _Labels) -> Target:
    """Return sequences of whole numbers as they are, those of words as numbers of classes."""
    rows = [
        sequence_of(column[row], about.name, table.place(row), _KEY) for row in range(len(column))
    ]
    if (plain := whole_numbers(rows)) is not None:
        return Target(Ragged.of(plain, pad=IGNORED, length=None), None)
    mixed = next((n for n, row in enumerate(rows) if row and type(row[0]) is int), None)
    if mixed is not None:
        raise DataError(f"column {about.name!r} mixes words and numbers, in {table.place(mixed)}")
    return _numbered([[str(word) for word in row] for row in rows], about)


def _word_tags(column: Column, table: Table, about: _Labels) -> Target:
    """Return sequences of class numbers for the tags of words, one tag a word."""
    rows = tags_of(column)
    if None in rows:
        row = rows.index(None)
        raise DataError(
            f"column {about.name!r} holds {shown(column[row])} in {table.place(row)}, which is no "
            "list of tags",
            hint='a list, such as ["O", "B-name"], or a text with blanks between the tags',
            key=_KEY,
        )
    target = _numbered([[str(tag) for tag in row or ()] for row in rows], about)
    assert isinstance(target.values, Ragged)
    refuse_uneven(table, about.name, target.values)
    return target


def _numbered(rows: Sequence[Sequence[str]], about: _Labels) -> Target:
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


def _texts(column: Column, table: Table, name: str) -> Distinct:
    """Return the texts of a column; raise if it is something else or a cell is empty."""
    if isinstance(column, Images) or not isinstance(column, Listed) or column.kind != "text":
        cells = column.values if isinstance(column, Listed) else ()
        row = next((n for n, cell in enumerate(cells) if not isinstance(cell, str | int)), None)
        where = "" if row is None else f": {shown(cells[row])} in {table.place(row)}"
        raise DataError(f"column {name!r} holds neither text nor whole numbers{where}", key=_KEY)
    texts = column.distinct()
    # In order of their first cells, so that the first row without a label is named.
    empty = next((number for number, text in enumerate(texts.values) if not text.strip()), None)
    if empty is not None:
        row = int((texts.numbers == empty).argmax())
        others = int((texts.numbers == empty).sum()) - 1
        raise DataError(
            f"column {name!r} has no label in {table.place(row)}{and_more(others)}",
            hint="fill in the label, or leave such rows out",
            key=_KEY,
        )
    return texts


def _label_sets(column: Column, table: Table, chosen: str | None, about: _Labels) -> Target:
    """Return rows of 0 and 1 `(N, C)` for a column in any form that label sets have.

    `chosen` is the separator between two labels that the config names.
    """
    separator = chosen or SEPARATOR
    if isinstance(column, Numbers):
        return _matrix(column.values, about)
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


def _of_lists(lists: Sequence[LabelList], texts: Sequence[str], about: _Labels) -> Target:
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


def _indicators(sets: Sequence[set[str]], about: _Labels) -> Target:
    """Return rows of 0 and 1 `(N, C)` for sets of labels."""
    spellings = {label for labels in sets for label in labels}
    sets = [{about.rules.spelt(label) for label in labels} for labels in sets]
    found = sorted({label for labels in sets for label in labels})
    order = about.settled(spellings, found)
    if not order.classes:
        raise DataError(f"column {about.name!r} holds no label", key=_KEY)
    number = {label: position for position, label in enumerate(order.classes)}
    if not set(found) <= number.keys():
        raise about.unseen(sets, order.classes)
    values = torch.zeros(len(sets), len(order.classes))
    for row, labels in enumerate(sets):
        for label in labels:
            values[row, number[label]] = 1
    return Target(values, order.classes, order.notes)


def _matrix(values: Tensor, about: _Labels) -> Target:
    """Return rows of 0 and 1 with their columns in the order of the classes."""
    if values.ndim != 2 or not bool(((values == 0) | (values == 1)).all()):
        raise DataError(
            f"column {about.name!r} must hold a row of 0 and 1 a sample, or label names",
            hint="one column of 0 and 1 for each label: target: [first, second]",
            key=_KEY,
        )
    names = about.rules.names or tuple(str(position) for position in range(values.shape[1]))
    order = ordered(names, about.rules) if about.classes is None else Ordered(about.classes)
    # A head may have more outputs than the data has labels; without one they must be equally many.
    is_whole = len(names) == len(order.classes) or bool(about.rules.head)
    if not set(names) <= set(order.classes) or not is_whole:
        raise DataError(
            f"column {about.name!r} has {len(names)} labels, not {len(order.classes)}", key=_KEY
        )
    # Outputs of the head that no column is about are never the right answer here.
    rows = torch.zeros(len(values), len(order.classes))
    for place, name in enumerate(order.classes):
        if name in names:
            rows[:, place] = values[:, names.index(name)]
    return Target(rows, order.classes, order.notes)


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
        f"column {name!r} holds {shown(value)} in {place}, which is no set of labels", key=_KEY
    )


def _numbers(column: Column, table: Table, name: str) -> Tensor:
    """Return a column of numbers; raise for anything else, with a hint for the target."""
    if isinstance(column, Numbers):
        return column.values
    error = no_number(name, column, table.place, _KEY)
    if error.hint == words_as_numbers(name):
        error.hint = "task: {type: classification} learns words as classes"
    raise error
