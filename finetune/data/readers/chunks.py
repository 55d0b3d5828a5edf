"""What every reader of tables yields, what it is told, and how messages list its columns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

ROWS_AT_ONCE = 4096
"""Rows of one chunk."""
_NAME_LENGTH = 80
_NAMES_LENGTH = 240


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the tables of a source are written.

    Args:
        separator: The character between two values; None to take the one of the first line.
        quote: The character around a value that holds separators or line breaks; None if the file
            has no such character.
        encoding: Character encoding of files that do not tell theirs by a mark.
        missing: Cells that stand for no value.
        is_sure: Whether somebody has said that `quote` is right, whatever the rows look like.
    """

    separator: str | None = None
    quote: str | None = '"'
    encoding: str = "utf-8"
    missing: frozenset[str] = frozenset()
    is_sure: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file, as columns.

    Args:
        columns: The cells of each column that was asked for.
        names: Names of all columns, also of those that nobody asked for.
        lines: The line on which each row begins, from 1; empty where the file has no lines.
        count: How many rows.
    """

    columns: dict[str, list[Any]]
    names: tuple[str, ...]
    lines: Sequence[int]
    count: int


@dataclass(slots=True)
class Reading:
    """One file while it is read: its name, its dialect, what is wanted of it, notes on it.

    Args:
        name: The file, for messages.
        dialect: How it is written.
        wanted: Columns to be read; None for all.
        notes: What was found while reading that the user should know, a line each.
        also: A column that is read as well where the file has it once.
    """

    name: str
    dialect: Dialect
    wanted: Collection[str] | None = None
    notes: list[str] = field(default_factory=list)
    also: str | None = None

    def needs(self, column: str) -> bool:
        """Tell whether a file without a column, or with two of its name, is of no use."""
        return self.wanted is None or column in self.wanted

    def wants(self, column: str) -> bool:
        """Tell whether a column is to be read."""
        return self.needs(column) or column == self.also

    def filled(self, cell: Any) -> Any:
        """Return a cell of JSON or Parquet; None for one that stands for no value."""
        if not self.dialect.missing or not isinstance(cell, str | int | float):
            return cell
        return None if str(cell) in self.dialect.missing else cell


def shown_names(names: Collection[str], *, quoted: bool = False) -> str:
    """Return the names of columns as a message lists them; of very many or long ones the first."""
    length = 0
    shown: list[str] = []
    for name in names:
        text = repr(name) if quoted else name
        text = text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}..."
        length += len(text) + 2
        if shown and length > _NAMES_LENGTH:
            break
        shown.append(text)
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
