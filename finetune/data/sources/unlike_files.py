"""Tell columns that hold numbers in one file of a table and words in another."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from finetune.config.messages import shown
from finetune.data.cells import may_be_number, read_cells
from finetune.data.readers.mapped import MappedCells
from finetune.data.table import Column, Listed, Table


class _Look(NamedTuple):
    """What the cells of one file of a column look like."""

    first_word: int | None
    """The first row whose cell is no number; None if there is none."""
    has_numbers: bool
    """Whether a cell before that one is a number."""


def notes_on_unlike_files(
    table: Table, names: Iterable[str], read: Mapping[str, Column]
) -> list[str]:
    """Return a note for each column that is text though it holds numbers alone in some file.

    The files are one column, so that a word in one of them makes words of the numbers in all.

    Args:
        table: All rows of a source.
        names: The columns in use, but for those that are always text.
        read: Columns whose cells were read already, as numbers or texts.
    """
    if len(table.told.files) < 2:
        return []
    notes = []
    for name in names:
        column = table.columns[name]
        if not isinstance(column, Listed) or column.kind != "cells":
            continue
        # Nearly always one of the first cells tells that a column is text; numbers take longer.
        if isinstance(read.get(name) or read_cells(column, as_text=False), Listed):
            notes += _note(name, column, table)
    return notes


def _note(name: str, column: Listed, table: Table) -> list[str]:
    """Return the note on one column, if there is something to note."""
    files, starts = table.told.files, table.told.starts
    ends = (*starts[1:], len(table))
    looks = [_look(column, *span) for span in zip(starts, ends, strict=True)]
    words = [look.first_word for look in looks if look.first_word is not None]
    pairs = zip(files, looks, strict=True)
    numbers = [file for file, look in pairs if look.first_word is None and look.has_numbers]
    if not words or not numbers:
        return []
    many = f"{numbers[0]} holds" if len(numbers) == 1 else f"{len(numbers)} files hold"
    return [
        f"column {name!r} is read as text: {many} numbers alone, and {shown(column[words[0]])} in "
        f"{table.place(words[0])} is none"
    ]


def _look(column: Listed, start: int, stop: int) -> _Look:
    """Look at the cells of one file, up to the first word."""
    # By position: to skip the rows of all files before it would take the square of their number.
    cells: Iterable[Any] = map(column.values.__getitem__, range(start, stop))
    if isinstance(column.values, MappedCells):
        cells = column.values.take(np.arange(start, stop))
    has_numbers = False
    for row, cell in enumerate(cells, start):
        if not may_be_number(cell):
            return _Look(row, has_numbers)
        has_numbers = has_numbers or cell != ""
    return _Look(None, has_numbers)
