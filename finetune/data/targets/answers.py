"""Answers in texts: the forms that a column of answers has, and their places in the text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from finetune.config.data import DataConfig
from finetune.config.messages import shown
from finetune.data.cells import read_cells
from finetune.data.ragged import Ragged
from finetune.data.readers.chunks import refuse_absent
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.errors import DataError

_KEY = ("data", "target")
_FORMS = (
    'a cell such as {"text": ["Paris"], "answer_start": [17]}; or two columns, target: [answer, '
    "start]: the answer, and at which character of the text it begins, from 0"
)


class _Answer(NamedTuple):
    """An answer as it is written."""

    text: str
    start: int


def joined_answers(
    config: DataConfig, tables: Mapping[str, Table]
) -> tuple[DataConfig, dict[str, Table]]:
    """Return config and tables with one target column: answers as JSON, `[[text, start], ...]`.

    Args:
        config: `data:` of the config.
        tables: The table of each part.

    Raises:
        DataError: the config does not name question, text and answers, a column is missing, or a
            cell holds something else.
    """
    if config.inputs is None or len(config.inputs) != 2:
        raise DataError(
            "answers need two inputs, the question and the text that holds its answer",
            hint="inputs: [question, context]",
            key=("data", "inputs"),
        )
    target = (config.target,) if isinstance(config.target, str) else config.target or ()
    if len(target) not in (1, 2):
        raise DataError("answers need one or two target columns", hint=_FORMS, key=_KEY)
    whole = ", ".join(target)
    joined = {part: _joined(table, target, whole) for part, table in tables.items()}
    return config.model_copy(update={"target": whole}), joined


def _joined(table: Table, names: Sequence[str], whole: str) -> Table:
    """Return a table with answers as JSON in place of the columns that say them."""
    for name in names:
        refuse_absent(name, table.columns, _KEY)
    columns = [table.columns[name] for name in names]
    read = _from_one if len(names) == 1 else _from_two
    cells = []
    for row in range(len(table)):
        values = [_value(column, row) for column in columns]
        found = read(*values)
        if found is None:
            said = " and ".join(map(shown, values))
            raise DataError(
                f"column {whole!r} holds {said} in {table.place(row)}, which is no answer",
                hint=_FORMS,
                key=_KEY,
            )
        cells.append(json.dumps(found))
    others = {name: column for name, column in table.columns.items() if name not in names}
    return replace(table, columns={**others, whole: Listed(cells, "text")})


def _value(column: Column, row: int) -> Any:
    """Return a value of a column as Python has it."""
    value: Any = column[row]
    return value.tolist() if hasattr(value, "tolist") else value


def _from_two(text: Any, start: Any) -> list[_Answer] | None:
    """Return the answer that a text and its first character say; empty for none."""
    if text is None or (isinstance(text, str) and not text):
        return []
    place = _whole(start)
    return [_Answer(text, place)] if isinstance(text, str) and place is not None else None


def _from_one(cell: Any) -> list[_Answer] | None:
    """Return the answers in a cell, each once; None if it is of no known form."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell) if cell.strip() else None
        except ValueError:
            return None
    if cell is None:
        return []
    entries = cell if isinstance(cell, list | tuple) else [cell]
    found: list[_Answer] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or (answers := _of_entry(entry)) is None:
            return None
        found += answers
    # Several annotators often mark the same answer, as in SQuAD.
    return list(dict.fromkeys(found))


def _of_entry(entry: Mapping[str, Any]) -> list[_Answer] | None:
    """Return the answers of `{"text": ..., "answer_start": ...}`, one or lists of them."""
    if not {"text", "answer_start"} <= entry.keys():
        return None
    texts, starts = (_listed(entry[name]) for name in ("text", "answer_start"))
    places = [_whole(start) for start in starts]
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        return None
    pairs = zip(texts, places, strict=True)
    known = [_Answer(text, place) for text, place in pairs if text and place is not None]
    # An empty text is no answer; a text without its place is a fault.
    return known if len(known) == sum(map(bool, texts)) else None


def _listed(value: Any) -> list[Any]:
    """Return a value, or several of them, as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, list | tuple) else [value]


def _whole(value: Any) -> int | None:
    """Return a whole number that is written in any form; None for anything else."""
    try:
        # By way of float: a gap anywhere in a column of whole numbers makes 17 a 17.0.
        number = float(value)
        return int(number) if number == int(number) else None
    # The last one is for infinity, which has no whole number.
    except (TypeError, ValueError, OverflowError):
        return None


def encode_answers(table: Table, name: str, *, may_be_unanswered: bool) -> Ragged:
    """Return the places of answers in their texts: start and end, one answer after another.

    Args:
        table: The samples, with a column of texts that hold answers.
        name: The column of answers as `joined_answers` writes it.
        may_be_unanswered: Whether a question may have no answer.

    Raises:
        DataError: a question has no answer, or an answer is not where it is said to be.
    """
    found = context_among(table.columns)
    assert found is not None  # the task has one
    context, texts = found
    rows: list[list[int]] = []
    for row, cell in enumerate(_texts(table.columns[name])):
        answers = [_Answer(*each) for each in json.loads(cell)]
        for answer in answers:
            _refuse_elsewhere(answer, texts.values[row], context, table.place(row))
        rows.append([place for one in answers for place in (one.start, one.start + len(one.text))])
    empty = [row for row, places in enumerate(rows) if not places]
    if empty and not may_be_unanswered:
        raise DataError(
            f"column {name!r} has no answer in {table.place(empty[0])}{and_more(len(empty) - 1)}",
            hint="task: {type: span, may_be_unanswered: true} takes questions without an answer",
            key=_KEY,
        )
    return Ragged.of(rows, pad=-1, length=None)


def _refuse_elsewhere(answer: _Answer, text: str, context: str, place: str) -> None:
    """Raise `DataError` unless the text holds an answer where it is said to begin."""
    end = answer.start + len(answer.text)
    # A negative place would count from the end of the text.
    if answer.start >= 0 and text[answer.start : end] == answer.text:
        return
    first = text.find(answer.text)
    raise DataError(
        f"{context!r} has {shown(text[max(answer.start, 0) : max(end, 0)])} at character "
        f"{answer.start} in {place}, and the answer is {shown(answer.text)}",
        hint="characters are counted from 0"
        + (f"; its first place in the text is {first}" if first >= 0 else ""),
        key=_KEY,
    )


def _texts(column: Column) -> Sequence[str]:
    """Return a column of texts as they are."""
    assert isinstance(column, Listed)
    return column.values


def with_contexts(tables: Mapping[str, Table], name: str) -> dict[str, Table]:
    """Return the tables with a column of texts as one that holds answers.

    Raises:
        DataError: it holds no text.
    """
    found = {}
    for part, table in tables.items():
        column = read_cells(table.columns[name], as_text=True)
        if isinstance(column, Numbers) or not isinstance(column, Listed) or column.kind != "text":
            raise DataError(f"column {name!r} holds no text", key=("data", "inputs"))
        columns = {**table.columns, name: replace(column, kind="context")}
        found[part] = replace(table, columns=columns)
    return found


def context_among(columns: Mapping[str, object]) -> tuple[str, Listed] | None:
    """Return the column of texts that hold answers, and its name; None if there is none."""
    named_columns = columns.items()
    return next(
        ((n, c) for n, c in named_columns if isinstance(c, Listed) and c.kind == "context"), None
    )
