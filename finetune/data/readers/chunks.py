"""Types that all readers of tables share: dialect, chunk, reading; and lists of names."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from finetune.errors import DataError, Key, did_you_mean

# Enough that the cost of a chunk does not matter, and few enough to stay in memory with long texts.
ROWS_AT_ONCE = 4096
"""Most rows in one chunk."""
_WRONG = re.compile("[\udc80-\udcff]")
_A_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,18})?")
_NAME_LENGTH = 80
_NAMES_LENGTH = 240


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the tables of a source are written.

    Args:
        separator: The character between values; None to find it in the first line.
        quote: The character around values that contain separators or line breaks; None if the file
            has none.
        encoding: Character encoding of files without a byte order mark.
        missing: Cells that mean no value.
        is_sure: Whether the user has named `quote`, so that odd rows do not question it.
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
        columns: Cells of each column that is wanted.
        names: Names of all columns in the file.
        lines: Line at which each row begins, from 1; empty if the file has no lines.
        count: Number of rows.
        bad: Rows that cannot be read, by position, with the reason; their cells hold nothing.
    """

    columns: dict[str, list[Any]]
    names: tuple[str, ...]
    lines: Sequence[int]
    count: int
    bad: dict[int, DataError] = field(default_factory=dict)


@dataclass(slots=True)
class Reading:
    """One file while it is read: name, dialect, wanted columns, notes.

    Args:
        name: Name of the file, for messages.
        dialect: How the file is written.
        wanted: Columns to read; None for all.
        notes: Lines to report to the user, added while reading.
        also: A column that is read too if the file has exactly one of that name.
        others: Whether all other columns are read too, as they are written.
        passes: Whether a row that cannot be read is reported in its chunk, not raised.
    """

    name: str
    dialect: Dialect
    wanted: Collection[str] | None = None
    notes: list[str] = field(default_factory=list)
    also: str | None = None
    others: bool = False
    passes: bool = False

    def needs(self, column: str) -> bool:
        """Tell whether the file must have a column, and only one of that name."""
        return self.wanted is None or column in self.wanted

    def wants(self, column: str) -> bool:
        """Tell whether a column is read."""
        return self.needs(column) or column == self.also or self.others

    def missing_in(self, column: str) -> frozenset[str]:
        """Return the cells of a column that mean no value; none in one that is read as written."""
        is_used = self.needs(column) or column == self.also
        return self.dialect.missing if is_used else frozenset()

    def filled(self, cell: Any) -> Any:
        """Return a cell of JSON or Parquet, or None if it means no value."""
        if not self.dialect.missing or not isinstance(cell, str | int | float):
            return cell
        # As text: the config lists what a person sees in the file.
        return None if is_missing(str(cell), self.dialect.missing) else cell


def is_missing(cell: str, missing: frozenset[str]) -> bool:
    """Tell whether a cell is one of those that mean no value, or the same number as one of them.

    A sign such as -999 is -999.0 in columns with fractions, and in other forms of a file.
    """
    if cell in missing:
        return True
    numbers = _numbers_among(missing)
    return bool(numbers) and _number(cell) in numbers


@cache
def _numbers_among(missing: frozenset[str]) -> frozenset[float]:
    """Return the numbers among cells that mean no value."""
    return frozenset(number for number in map(_number, missing) if number is not None)


def _number(cell: str) -> float | None:
    """Return the number that a cell is; None for anything else, such as the name 007."""
    return float(cell) if _A_NUMBER.fullmatch(cell) else None


def wrong_bytes(lines: Sequence[str], reading: Reading, where: str) -> DataError | None:
    """Return the error for lines with bytes that are no text in their encoding; None without any.

    Python decodes such bytes to single surrogates where `surrogateescape` handles errors.
    """
    for line in lines:
        # `isascii` looks at a flag of the text, so that lines of ASCII cost no search.
        if not line.isascii() and (found := _WRONG.search(line)) is not None:
            byte = ord(found[0]) & 0xFF
            return DataError(
                f"is not valid {reading.dialect.encoding}: byte 0x{byte:02x}", where=where
            )
    return None


def refuse_absent(name: str, known: Collection[str], key: Key) -> None:
    """Raise `DataError` if a column that the config names at `key` is not among the known ones."""
    if name not in known:
        raise DataError(
            f"no column {name!r}; there are: {shown_names(known)}",
            hint=did_you_mean(name, known),
            key=key,
        )


def shown_names(names: Collection[str], *, quoted: bool = False) -> str:
    """Return names of columns as text for a message; only the first if they are many or long."""
    length = 0
    shown: list[str] = []
    # Names are a stranger's, and a file may have a million of them.
    for name in names:
        text = repr(name) if quoted else name
        text = text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}..."
        length += len(text) + 2
        if shown and length > _NAMES_LENGTH:
            break
        shown.append(text)
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
