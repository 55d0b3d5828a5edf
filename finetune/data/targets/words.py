"""Columns of words: lists of words, or texts that are cut at blanks, for tasks that tag words."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.config.messages import shown
from finetune.data.cells import read_cells
from finetune.data.ragged import Ragged
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.data.targets.label_lists import listed_labels
from finetune.errors import DataError, named

_KEY = ("data", "inputs")
_BEGINNINGS = ('["', "['", "[]")
"""Beginnings of a list of words that is written as text: only words in quotes tell it from a text
in brackets."""


def words_of(cell: Any) -> list[str] | None:
    """Return the words of a cell; None if it holds something else.

    They are the entries of a list; of a list that is written as text, such as `["a", "b"]`; or what
    is between the blanks of any other text.
    """
    if isinstance(cell, str):
        written = listed_labels(cell) if cell.lstrip().startswith(_BEGINNINGS) else None
        return cell.split() if written is None else written
    values = cell.tolist() if isinstance(cell, np.ndarray) else cell
    if isinstance(values, list | tuple) and all(isinstance(word, str) for word in values):
        return [*values]
    return None


def as_words(name: str, column: Column, place: Callable[[int], str]) -> Listed:
    """Return a column as one of words; texts are cut only where they are used.

    Args:
        name: Name of the column.
        column: The column.
        place: Returns the place of a row, for messages.

    Raises:
        DataError: a cell holds no words.
    """
    if not isinstance(column, Listed):
        raise DataError(f"column {name!r} holds no words", key=_KEY)
    # Any text has words, so that no cell needs a look; things may be anything.
    if column.kind in ("text", "cells"):
        return replace(column, kind="words")
    for row, cell in enumerate(column.values):
        if words_of(cell) is None:
            raise DataError(
                f"column {name!r} holds {shown(cell)} in {place(row)}, which is neither a text nor "
                "a list of words",
                key=_KEY,
            )
    return replace(column, kind="words")


def with_words(
    tables: Mapping[str, Table], inputs: Sequence[str], tokenized: Collection[str]
) -> dict[str, Table]:
    """Return the tables with the input column whose words have tags as one of words.

    Args:
        tables: The settled columns of each part; the training part decides which one it is.
        inputs: Names of the input columns.
        tokenized: Those that the config names for tokenizing, if any.

    Raises:
        DataError: it is not one column alone.
    """
    train = tables["train"]
    found = [name for name in inputs if name in tokenized] or [
        name for name in inputs if _holds_words(train.columns[name])
    ]
    if len(found) != 1:
        these = f"the inputs {named(found)} hold text" if found else "no input holds text"
        raise DataError(
            f"tags are of the words of one column, and {these}",
            hint="data.inputs names one column of texts, or of lists of words",
            key=_KEY,
        )
    name = found[0]
    given = {
        part: replace(
            table,
            columns={**table.columns, name: as_words(name, table.columns[name], table.place)},
        )
        for part, table in tables.items()
    }
    return {**given, "train": _noting_lists(given["train"], name)}


def _noting_lists(table: Table, name: str) -> Table:
    """Return a table with a note if its words are lists that are written as text."""
    first = table.columns[name][0] if len(table) else ""
    if not isinstance(first, str) or words_of(first) == first.split():
        return table
    note = f"cells of {name!r} are read as lists of words, such as {shown(first)}"
    return replace(table, notes=(*table.notes, note))


def _holds_words(column: Column) -> bool:
    """Tell whether a column holds texts that are no numbers, or lists of words."""
    column = read_cells(column, as_text=False)
    if not isinstance(column, Listed) or not len(column):
        return False
    return column.kind == "text" or words_of(column[0]) is not None


def refuse_uneven(table: Table, target: str, tags: Ragged) -> None:
    """Raise `DataError` if a row has more words than tags, or fewer.

    Args:
        table: The samples, one of their columns of words.
        target: Name of the column of tags.
        tags: The tags.
    """
    found = words_among(table.columns)
    assert found is not None  # the task needs one
    name, words = found
    numbers = [len(words_of(cell) or ()) for cell in words.values]
    uneven = [
        row
        for row, (number, wanted) in enumerate(zip(tags.lengths.tolist(), numbers, strict=True))
        if number != wanted
    ]
    if uneven:
        row = uneven[0]
        raise DataError(
            f"column {name!r} has {numbers[row]:,} words and {target!r} has "
            f"{int(tags.lengths[row]):,} tags in {table.place(row)}{and_more(len(uneven) - 1)}",
            hint="each word needs one tag; a text is cut into words at its blanks",
            key=("data", "target"),
        )


def words_among(columns: Mapping[str, Column]) -> tuple[str, Listed] | None:
    """Return the column of words and its name; None if there is none."""
    named_columns = columns.items()
    return next(
        ((n, c) for n, c in named_columns if isinstance(c, Listed) and c.kind == "words"), None
    )


def tags_of(column: Column) -> list[list[str] | list[int] | None]:
    """Return the tags in each cell of a column, None for a cell that holds none.

    They are words or whole numbers: in a list, also one written as text, or between blanks.
    """
    if isinstance(column, Numbers):
        # Lists of whole numbers that are all of one length have been read as one array.
        is_of_lists = column.values.ndim == 2 and not column.values.is_floating_point()
        return column.values.tolist() if is_of_lists else [None] * len(column)
    if not isinstance(column, Listed):
        return [None] * len(column)
    return [_tags_of(cell) for cell in column.values]


def _tags_of(cell: Any) -> list[str] | list[int] | None:
    """Return the tags in a cell; None if it holds something else."""
    values = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(values, list | tuple) and values and all(type(tag) is int for tag in values):
        return [*values]
    if isinstance(values, str) and (written := listed_labels(values)) is not None:
        return written
    return words_of(values)


def needs_blank(tokenizer: Any) -> bool:
    """Tell whether a tokenizer takes a word for one inside another unless a blank is before it.

    Those of bytes do, as of GPT-2 and RoBERTa, unless they put a blank there themselves.
    """
    steps = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return any(
        step["type"] == "ByteLevel" and not step["add_prefix_space"]
        # A sequence of steps has them in a list; a single one stands there itself.
        for step in steps.get("pretokenizers", [steps])
        if "type" in step
    )


def token_places(encoding: Any) -> tuple[list[int], list[int]]:
    """Return where each token of a pair begins and ends in the second text; -1 for all others.

    Args:
        encoding: A result of `tokenizers`.
    """
    pairs = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    found = [place if text == 1 else (-1, -1) for text, place in pairs]
    return [start for start, _ in found], [end for _, end in found]


def first_tokens(word_ids: list[int | None]) -> list[int]:
    """Return the number of the word that begins with each token; -1 for all other tokens."""
    # Each token beside the one before it: a word goes on where both have its number.
    before: list[int | None] = [None, *word_ids]
    return [
        -1 if word is None or word == last else word
        for last, word in zip(before, word_ids, strict=False)
    ]
