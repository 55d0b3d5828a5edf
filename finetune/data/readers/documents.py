"""Read rows of JSON: one object per line, objects over several lines, or an array of objects."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from finetune.data.readers.chunks import ROWS_AT_ONCE, Chunk, Reading, wrong_bytes
from finetune.data.readers.json_text import JsonText, after_blanks
from finetune.errors import DataError, FinetuneError
from finetune.reading import MAX_JSON_BYTES, limited_lines, parse_json_at, parse_json_object

# A bracket alone tells nothing: a text, or a cell of a csv, may begin with one as well.
_BEGINS_AN_OBJECT = re.compile(r'\s*\{\s*(["}]|\Z)')
_BEGINS_AN_ARRAY = re.compile(r"\s*\[\s*([{\]]|\Z)")


_NO_COMMAS = "write one object a line and no comma behind it, or an array: [ before, ] behind all"
_WITH_A_COMMA = re.compile(r"\s*\{.*\}\s*,\s*", re.DOTALL)


def looks_like_json(beginning: str) -> bool:
    """Tell whether a text begins like a JSON object, or like an array of objects."""
    is_object = _BEGINS_AN_OBJECT.match(beginning) is not None
    return is_object or _BEGINS_AN_ARRAY.match(beginning) is not None


def document_chunks(file: TextIO, reading: Reading) -> Iterator[Chunk]:
    """Yield JSON objects as rows; a name that an object lacks is None there.

    Raises:
        DataError: something is not a JSON object, or exceeds a limit.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: dict[int, DataError] = {}
    for line, row in _objects(file, reading):
        if isinstance(row, DataError):
            bad[len(rows)] = row
        # A bad row keeps its place, so that the rows behind it keep their numbers.
        rows.append({} if isinstance(row, DataError) else row)
        lines.append(line)
        if len(rows) == ROWS_AT_ONCE:
            yield _chunk(rows, lines, reading, bad)
            rows, lines, bad = [], [], {}
    yield _chunk(rows, lines, reading, bad)


def json_object(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a line.

    Raises:
        DataError: the line is something else, or exceeds a limit.
    """
    try:
        return parse_json_object(line, where)
    except FinetuneError as error:
        hint = _NO_COMMAS if _WITH_A_COMMA.fullmatch(line) else error.hint
        raise DataError(error.message, where=where, hint=hint) from error


def _chunk(
    rows: list[dict[str, Any]], lines: list[int], reading: Reading, bad: dict[int, DataError]
) -> Chunk:
    """Return objects as a chunk of columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names if reading.wants(name)}
    for name, cells in columns.items():
        if reading.missing_in(name):
            columns[name] = [reading.filled(cell) for cell in cells]
    return Chunk(columns, tuple(names), lines, len(rows), bad)


def _objects(file: TextIO, reading: Reading) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Yield each object, with the line at which it begins; a bad line as its error, if asked."""
    name = reading.name
    try:
        blank, first = _first_line(file)
        if not first:
            return
        # One object per line needs only a line in memory; any other layout is read value by value.
        if not _is_whole(first):
            yield from _of_document(JsonText(file, name, first, blank + 1))
            return
        rest = limited_lines(file, name, before=blank + 1)
        for number, line in chain([(blank + 1, first)], rest):
            if line.strip():
                yield number, _object_in(line, f"{name}:{number}", reading)
    except FinetuneError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(error.message, where=error.where) from error


def _object_in(line: str, where: str, reading: Reading) -> dict[str, Any] | DataError:
    """Return the object in a line; its error if bad lines are passed over."""
    if not reading.passes:
        return json_object(line, where)
    try:
        return wrong_bytes([line], reading, where) or json_object(line, where)
    except DataError as error:
        return error


def _first_line(file: TextIO) -> tuple[int, str]:
    """Return how many blank lines a text begins with, and the line after them, or its beginning.

    An array that was written without line breaks may be longer than any line that is read whole.
    """
    blank = 0
    while line := file.readline(MAX_JSON_BYTES + 1):
        if line.strip():
            return blank, line
        blank += 1
    return blank, ""


def _is_whole(line: str) -> bool:
    """Tell whether a line is one complete JSON object by itself, and no part of an array."""
    if _BEGINS_AN_ARRAY.match(line) is not None:
        return False
    try:
        _, end = parse_json_at(line, after_blanks(line, 0), "")
    except FinetuneError:
        return False
    return after_blanks(line, end) == len(line)


def _of_document(text: JsonText) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object of a text that is an array, or objects one after another."""
    if is_array := text.next() == "[":
        text.skip()
    # An empty array is a table without rows, and no error.
    ends = is_array and text.next() == "]"
    while not ends and text.next():
        line, where = text.line, text.where
        value = text.value()
        if not isinstance(value, dict):
            raise DataError(f"needs a JSON object, got {type(value).__name__}", where=where)
        yield line, value
        if not is_array and text.next() == ",":
            raise DataError("not JSON: a comma follows this object", where=where, hint=_NO_COMMAS)
        if is_array:
            ends = text.next() == "]"
            if not ends:
                _pass_comma(text, where)
    if is_array:
        _refuse_unfinished(text)


def _pass_comma(text: JsonText, where: str) -> None:
    """Move behind a comma; raise if there is none."""
    if text.next() != ",":
        raise DataError("not JSON: expecting ',' or ']' after this object", where=where)
    text.skip()


def _refuse_unfinished(text: JsonText) -> None:
    """Raise `DataError` if a JSON array does not end here, or if more than blanks follows it."""
    if not text.next():
        raise DataError("not JSON: its array does not end", where=text.where)
    text.skip()
    if text.next():
        raise DataError("not JSON: something stands after its array", where=text.where)
