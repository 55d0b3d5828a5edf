"""Rows of JSON: one object a line, objects over several lines, or an array of them."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from finetune.data.readers.chunks import ROWS_AT_ONCE, Chunk, Reading
from finetune.errors import DataError, FinetuneError
from finetune.reading import limited_lines, parse_json_at, parse_json_object

_BLANK = re.compile(r"[ \t\r\n]*")
_BEGINS_AN_OBJECT = re.compile(r'\s*\{\s*(["}]|\Z)')
_BEGINS_AN_ARRAY = re.compile(r"\s*\[\s*([{\]]|\Z)")


def looks_like_json(beginning: str) -> bool:
    """Tell whether a text begins as an object of JSON, or as an array of objects."""
    is_object = _BEGINS_AN_OBJECT.match(beginning) is not None
    return is_object or _BEGINS_AN_ARRAY.match(beginning) is not None


def document_chunks(file: TextIO, reading: Reading) -> Iterator[Chunk]:
    """Read objects of JSON as rows. A name that an object lacks is None there.

    Raises:
        DataError: something is no JSON object, or exceeds a limit.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, row in _objects(file, reading.name):
        rows.append(row)
        lines.append(line)
        if len(rows) == ROWS_AT_ONCE:
            yield _chunk(rows, lines, reading)
            rows, lines = [], []
    yield _chunk(rows, lines, reading)


def json_object(line: str, where: str) -> dict[str, Any]:
    """Read a line that holds one JSON object.

    Raises:
        DataError: it is something else, or exceeds a limit.
    """
    try:
        return parse_json_object(line, where)
    except FinetuneError as error:
        raise DataError(error.message, where=where) from error


def _chunk(rows: list[dict[str, Any]], lines: list[int], reading: Reading) -> Chunk:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: [reading.filled(row.get(name)) for row in rows]
        for name in names
        if reading.wants(name)
    }
    return Chunk(columns, tuple(names), lines, len(rows))


def _objects(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects with the line on which each begins."""
    try:
        numbered = limited_lines(file, name)
        first = next(((n, line) for n, line in numbered if line.strip()), None)
        if first is None:
            return
        if not _is_whole(first[1]):
            yield from _of_document(first[1] + file.read(), name, first[0])
            return
        for number, line in chain([first], numbered):
            if line.strip():
                yield number, json_object(line, f"{name}:{number}")
    except FinetuneError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(error.message, where=error.where) from error


def _is_whole(line: str) -> bool:
    """Tell whether a line alone is to be read as JSON, and not with those after it."""
    try:
        _, end = parse_json_at(line, _after_blanks(line, 0), "")
    except FinetuneError:
        return False
    is_array = _BEGINS_AN_ARRAY.match(line) is not None
    return not is_array and _after_blanks(line, end) == len(line)


def _of_document(text: str, name: str, line: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a text that is an array of them, or one after the other.

    Args:
        text: The text.
        name: The file.
        line: The line on which the text begins.
    """
    counted = position = _after_blanks(text, 0)
    line += text.count("\n", 0, position)
    is_array = text[position] == "["
    position = _after_blanks(text, position + 1) if is_array else position
    ends = is_array and text.startswith("]", position)
    while not ends and position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        where = f"{name}:{line}"
        value, position = parse_json_at(text, position, where)
        if not isinstance(value, dict):
            raise DataError(f"needs a JSON object, got {type(value).__name__}", where=where)
        yield line, value
        position = _after_blanks(text, position)
        if is_array:
            ends = text.startswith("]", position)
            if not ends and not text.startswith(",", position):
                raise DataError("not JSON: expecting ',' or ']' after this object", where=where)
            position = position if ends else _after_blanks(text, position + 1)
    _refuse_unfinished(text, position, name, line, is_array=is_array, ends=ends)


def _refuse_unfinished(
    text: str, position: int, name: str, line: int, *, is_array: bool, ends: bool
) -> None:
    """Refuse an array that does not end, and what stands after one."""
    if not is_array:
        return
    if not ends:
        raise DataError("not JSON: its array does not end", where=f"{name}:{line}")
    if _after_blanks(text, position + 1) < len(text):
        raise DataError("not JSON: something stands after its array", where=name)


def _after_blanks(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position
