"""Read rows of text with a separator between values: csv, tsv and similar formats."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TextIO

from finetune.data.readers.chunks import ROWS_AT_ONCE, Chunk, Reading, is_missing, wrong_bytes
from finetune.errors import DataError

SEPARATORS = ",\t;|"
_MANY = 3
_NO_QUOTES = "if quotation marks are part of the texts, write quote: none, beside the path"


def separated_chunks(file: TextIO, reading: Reading) -> Iterator[Chunk]:
    """Yield the rows of a table whose first line names the columns. A missing value is "".

    Columns without a name, and columns that share one, are ignored unless they are wanted.

    Raises:
        DataError: a row does not have as many values as the first line has names, or two columns
            have a wanted name.
    """
    separator = reading.dialect.separator
    lines = _Lines(file)
    with _unlimited_fields():
        if separator is None:
            separator = found_separator(lines.peek())
        rows = _rows(lines, reading, separator)
        _, names = next(rows, (1, []))
        places = _places(names, reading)
        hint = separator_hint(names, separator)
        known = tuple(dict.fromkeys(filter(None, names)))
        width, swallowed = len(names), _Swallowed(separator)
        missing = {name: reading.missing_in(name) for name in places}
        cells: dict[str, list[str]] = {name: [] for name in places}
        starts: list[int] = []
        bad: dict[int, DataError] = {}
        for line, found in rows:
            row, where = found, f"{reading.name}:{line}"
            if (fault := _fault(row, names, where, hint, lines.taken, reading)) is not None:
                if not reading.passes:
                    raise fault
                # The row keeps its place, with empty cells: those behind it keep their numbers.
                bad[len(starts)], row = fault, [""] * width
            else:
                swallowed.look(row, lines.taken, line, len(starts))
            starts.append(line)
            for name, place in places.items():
                cell = row[place]
                is_gap = missing[name] and is_missing(cell, missing[name])
                cells[name].append("" if is_gap else cell)
            if len(starts) == ROWS_AT_ONCE:
                yield Chunk(cells, known, starts, len(starts), bad)
                cells, starts, bad = {name: [] for name in places}, [], {}
        yield Chunk(cells, known, starts, len(starts), bad)
        # At the end, when it is known whether honest rows of several lines are among them.
        swallowed.told(reading, width=width)


def header_of(text: str, separator: str, quote: str | None) -> list[str]:
    """Return the names in the first line of a table; empty if the line cannot be parsed."""
    try:
        return next(csv.reader(text.splitlines()[:1], **_format(separator, quote)), [])
    except csv.Error:
        return []


def found_separator(line: str) -> str:
    """Return the separator that occurs most often in a line; a comma if there is none."""
    # Of equal counts `max` takes the first separator, which is the comma.
    return max(SEPARATORS, key=line.count)


def separator_hint(names: Sequence[str], separator: str = ",") -> str | None:
    """Return a hint on the first line: no header, quoted otherwise, another separator; or None."""
    first = names[0] if names else ""
    # A first column of several may well be called `#`.
    if first.startswith("sep=") or (first.startswith("#") and len(names) == 1):
        return "the first line is no header: take it out, so that the first one names the columns"
    if any(len(name) > 1 and name[0] == name[-1] == "'" for name in names):
        return 'names are in single quotes: quote: "\'", beside the path'
    # Programs that have no names write the numbers from 0, which do name columns.
    unnamed = [name for at, name in enumerate(names) if name != str(at)]
    if sum(map(_is_a_number, unnamed)) * 2 > len(unnamed):
        return "the first line holds numbers, and should name the columns: write a line of names"
    only = first if len(names) == 1 else ""
    found = max(";\t|,", key=only.count)
    if found == separator or found not in only:
        if len(only.split()) > 1 and only.isprintable() and "  " in only:
            return "its columns seem to be separated by blanks: write commas or tabs between them"
        return None
    written = json.dumps(found)
    found_by = f"its columns seem to be separated by {in_words(found)}"
    return f"{found_by}: separator: {written}, beside the path"


def _is_a_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False


def in_words(separator: str) -> str:
    """Return a separator as text for a message."""
    return "a tab" if separator == "\t" else repr(separator)


class _Lines(Iterator[str]):
    """The lines of a file; remembers those that the present row was made of."""

    def __init__(self, file: TextIO) -> None:
        self.taken: list[str] = []
        self._file = file
        self._first: str | None = None

    def peek(self) -> str:
        """Return the first line without consuming it."""
        # A pipe cannot be moved back to its beginning.
        self._first = self._file.readline()
        return self._first

    def __next__(self) -> str:
        line = self._file.readline() if self._first is None else self._first
        self._first = None
        if not line:
            raise StopIteration
        self.taken.append(line)
        return line


@dataclass(slots=True)
class _Swallowed:
    """Counts rows of several lines of which each looks like a complete row.

    A quotation mark that is part of a text has this effect: it joins all rows up to the next one.
    Real texts with line breaks look like this now and then, but not every time.
    """

    separator: str
    count: int = 0
    num_lines: int = 0
    num_honest: int = 0
    """Number of rows of several lines that do not look like this."""
    first: tuple[int, int] = field(default=(0, 0))
    """Row and line of the first such row."""

    def look(self, row: Sequence[str], lines: Sequence[str], line: int, row_before: int) -> None:
        """Count one row, given the lines that it was made of."""
        if len(lines) == 1:
            return
        if any(text.count(self.separator) != len(row) - 1 for text in lines):
            self.num_honest += 1
            return
        self.count += 1
        self.num_lines += len(lines)
        if self.count == 1:
            self.first = row_before + 1, line

    def told(self, reading: Reading, *, width: int) -> None:
        """Add a note on such rows, or raise.

        Raises:
            DataError: they must be a mistake: there are several, or the table has tabs.
        """
        if not self.count:
            return
        rows = "1 row is" if self.count == 1 else f"{self.count} rows are"
        row, line = self.first
        message = (
            f"{rows} made of {self.num_lines} lines that look like whole rows: a quoted cell holds "
            f"the line breaks, the first in row {row}"
        )
        # Texts with tabs inside are rare, so one such row in a tsv is enough.
        is_plain = self.count >= _MANY or self.separator == "\t"
        if is_plain and width > 1 and not self.num_honest and not reading.dialect.is_sure:
            hint = f"{_NO_QUOTES}; if the cells are right, write quote: '\"'"
            raise DataError(message, where=f"{reading.name}:{line}", hint=hint)
        reading.notes.append(f"{reading.name}:{line}: {message}; {_NO_QUOTES}")


@dataclass(slots=True)
class _Blanks:
    """Counts blank lines between rows; those at the end of a file do not matter."""

    count: int = 0
    first: int = 0
    num_at_end: int = 0

    def add(self, line: int) -> None:
        """Count one blank line."""
        self.first = self.first or line
        self.num_at_end += 1

    def row_follows(self) -> None:
        """Note that the blank lines so far are not at the end of the file."""
        self.count, self.num_at_end = self.count + self.num_at_end, 0

    def told(self, reading: Reading) -> None:
        """Add a note that blank lines were skipped: in a single column each may be a cell."""
        if self.count:
            lines = "1 blank line is" if self.count == 1 else f"{self.count:,} blank lines are"
            reading.notes.append(
                f'{reading.name}:{self.first}: {lines} passed over; an empty cell is written as ""'
            )


def _rows(lines: _Lines, reading: Reading, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not empty, with the line at which it begins."""
    reader = csv.reader(lines, **_format(separator, reading.dialect.quote))
    blanks, begins = _Blanks(), 1
    try:
        for row in reader:
            if row:
                blanks.row_follows()
                yield begins, row
            else:
                blanks.add(begins)
            # `line_num` counts lines, and a row with line breaks inside quotes has several.
            begins = reader.line_num + 1
            lines.taken.clear()
        blanks.told(reading)
    except csv.Error as error:
        hint = None if reading.dialect.quote is None else _NO_QUOTES
        # Python's message quotes the separator, and a tab in it would look like blanks.
        told = str(error).replace("\t", "\\t")
        if reader.line_num > begins:
            told += f", in line {reader.line_num}"
        raise DataError(told, where=f"{reading.name}:{begins}", hint=hint) from error


def _format(separator: str, quote: str | None) -> dict[str, Any]:
    """Return the arguments of `csv.reader`."""
    if quote is None:
        return {"delimiter": separator, "quoting": csv.QUOTE_NONE, "quotechar": None}
    # `strict`: else a quotation mark that is not closed takes in the rest of the file without an
    # error.
    return {"delimiter": separator, "quotechar": quote, "strict": True}


def _places(names: Sequence[str], reading: Reading) -> dict[str, int]:
    """Return the position of each column to read, by name."""
    counts = Counter(names)
    if reading.wanted is None:
        return {name: place for place, name in enumerate(names) if name and counts[name] == 1}
    for name in names:
        if counts[name] > 1 and name and reading.needs(name):
            raise DataError(f"two columns are named {name!r}", where=f"{reading.name}:1")
    read = {name for name, count in counts.items() if name and count == 1 and reading.wants(name)}
    return {name: place for place, name in enumerate(names) if name in read}


def _fault(
    row: Sequence[str],
    names: Sequence[str],
    where: str,
    hint: str | None,
    lines: Sequence[str],
    reading: Reading,
) -> DataError | None:
    """Return the error for a row of wrong bytes, of names, or of another width; or None."""
    if reading.passes and (wrong := wrong_bytes(lines, reading, where)) is not None:
        return wrong
    # A single cell may well read like the name of its column, and so may a row of numbers where a
    # table without names numbers its columns.
    is_alike = len(names) > 1 and row[-1] == names[-1] and not all(map(_is_a_number, names))
    if is_alike and [cell.removeprefix("\ufeff") for cell in row] == names:
        return DataError(
            "repeats the names of the columns, as where several tables were joined",
            hint="take such lines out: each would be a sample; a folder of tables, or a pattern "
            "such as part-*.csv, is read as one table",
            where=where,
        )
    if len(row) == len(names):
        return None
    return DataError(
        f"holds {len(row)} values where the first line names {len(names)} columns",
        hint=hint,
        where=where,
    )


@contextmanager
def _unlimited_fields() -> Iterator[None]:
    """Lift the limit of 128 KiB per value during the block; it is global in the `csv` module."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
