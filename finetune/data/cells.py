"""Read table cells as numbers, and say what is wrong with a cell that is not one."""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from finetune.config.messages import shown
from finetune.data.audio import Audio
from finetune.data.table import Column, Listed, Numbers, as_tensor, is_number
from finetune.errors import DataError, Key

# A first digit 0 is only allowed alone: `007` is a name. 18 digits always fit into int64.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# These never become numbers; they only choose the hint.
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}([,.' \u00a0\u202f])[0-9]{3}(\1[0-9]{3})*([.,][0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}\b")
_WITH_UNIT = re.compile(r"([+-]?[0-9.]{1,20}) ?[A-Za-z\u00b0\u00b5/]{1,6}[23]?")
_FIRST_CELLS = 100


def read_cells(column: Column, *, as_text: bool) -> Column:
    """Return cells of a csv file as numbers or texts; any other column unchanged."""
    if not isinstance(column, Listed) or column.kind != "cells":
        return column
    return replace(column, kind="text") if as_text else infer(column)


def infer(cells: Listed) -> Numbers | Listed:
    """Return cells as numbers if every non-empty one is a number, else as text.

    A number with leading zeros (`007`) or over 18 digits is a name, which makes its column text.
    Empty cells among numbers become NaN, which callers refuse with the row.
    """
    # Nearly always one of the first cells tells that a column is text.
    if not all(map(may_be_number, islice(cells.values, _FIRST_CELLS))):
        return replace(cells, kind="text")
    values, numbers = cells.distinct()
    if not any(values) or not all(map(may_be_number, values)):
        return replace(cells, kind="text")
    if all(cell and _WHOLE.fullmatch(cell) for cell in values):
        return Numbers(as_tensor(np.asarray([int(cell) for cell in values])[numbers], "cells"))
    return Numbers(torch.tensor([float(cell or "nan") for cell in values])[numbers])


def reads_as_number(cell: object) -> bool:
    """Tell whether a cell of a csv file is read as a number."""
    if not isinstance(cell, str):
        return False
    digits = cell.lstrip("+-")
    is_name = digits.isdigit() and (len(digits) > 18 or (len(digits) > 1 and digits[0] == "0"))
    # As numpy and pandas write them; they are refused later, with their row.
    is_word = digits.lower() in {"nan", "inf"}
    return is_word or (not is_name and _NUMBER.fullmatch(cell) is not None)


def no_number(column: str, cells: Column, place: Callable[[int], str], key: Key = ()) -> DataError:
    """Return the error for a column that should be numbers; it names the first cell that is not.

    Args:
        column: Name of the column.
        cells: Its contents.
        place: Returns the place of a row, for messages.
        key: Position of the config key at fault.
    """
    if not isinstance(cells, Listed):
        what = "recordings" if isinstance(cells, Audio) else "images"
        return DataError(f"column {column!r} holds {what} where numbers are needed", key=key)
    # The first cell that is at fault, not the first of the column: that one may well be a number.
    others = [row for row, cell in enumerate(cells.values) if not may_be_number(cell)]
    row = others[0] if others else 0
    if (uneven := _of_another_shape(cells)) is not None:
        return DataError(
            f"lists of column {column!r} differ in shape: {_shape(cells[0])} in {place(0)}, "
            f"{_shape(cells[uneven])} in {place(uneven)}",
            hint="bring them to one shape: no batch can hold them otherwise",
            key=key,
        )
    told = f"column {column!r} holds {shown(cells[row])} in {place(row)}"
    more = f"; {len(others)} of {len(cells)} cells are no numbers" if len(others) > 1 else ""
    if not others and len(cells):
        hint = "its cells read as numbers: write them as numbers, or as categories: data.transforms"
        hint += f": [{{type: categories, columns: [{column}]}}]"
        return DataError(f"{told}: the column is text in the data", hint=hint, key=key)
    return DataError(
        f"{told} where a number is needed{more}",
        hint=_remedy(column, cells[row], is_odd=len(others) * 2 <= len(cells)),
        key=key,
    )


def _of_another_shape(cells: Listed) -> int | None:
    """Return the first row whose list differs in shape from that of the first row, or None."""
    if not all(isinstance(cell, list | tuple) for cell in cells.values):
        return None
    shapes = (_shape(cell) for cell in cells.values)
    first = next(shapes, ())
    return next((row for row, shape in enumerate(shapes, 1) if shape != first), None)


def _shape(cell: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by the first entry at each level."""
    lengths: list[int] = []
    while isinstance(cell, list | tuple):
        lengths.append(len(cell))
        cell = cell[0] if cell else None
    return tuple(lengths)


def may_be_number(cell: Any) -> bool:
    """Tell whether a cell allows its column to be numbers; an empty cell does."""
    if isinstance(cell, str):
        return not cell or reads_as_number(cell)
    return is_number(cell)


def words_as_numbers(column: str) -> str:
    """Return a hint for a column of words where numbers are needed."""
    return (
        f"words for categories: data.transforms: [{{type: categories, columns: [{column}]}}], or "
        "leave the column out of data.inputs; other text: {type: tokenize}"
    )


def _meanings(text: str, mark: str) -> str:
    """Return what a number with separators `mark` between its digits may mean."""
    whole = text.replace(mark, "").replace(",", ".")
    # One comma with three digits behind it may be a decimal one; several marks cannot.
    if mark == "," and text.count(mark) == 1 and "." not in text:
        return f"{text} may mean {whole} or {text.replace(',', '.')}"
    return f"{text} seems to mean {whole}"


def _remedy_of_signs(text: str) -> str | None:
    """Return a hint for a number with signs of money, another minus, digits or unit; else None."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("_", "")
    # Digits of all scripts have a value, which `NFKC` leaves as it is.
    plain = "".join(str(unicodedata.digit(one, one)) for one in plain)
    bare = plain.strip("$\u20ac\u00a3\u00a5\u20b9 ")
    if reads_as_number(bare):
        return f"write it as {bare}, not {text}"
    if _DATE.match(text):
        return "a date is no number: write days since a day, or its parts, as columns of numbers"
    if (found := _WITH_UNIT.fullmatch(bare)) is not None and reads_as_number(found[1]):
        return f"write all in one unit, and without it: {found[1]}, not {text}"
    return None


def _remedy(column: str, cell: Any, *, is_odd: bool) -> str:
    """Return a hint for a cell that is no number; `is_odd` if most other cells are numbers."""
    text = cell.strip() if isinstance(cell, str) else ""
    if hasattr(cell, "isoformat"):
        text = cell.isoformat()
    if text != cell and reads_as_number(text):
        return "take out the blanks around the number"
    if text.endswith("%") and reads_as_number(text[:-1].strip().replace(",", ".")):
        return "write it without the percent sign: 35% as 35 or as 0.35"
    if (found := _GROUPED.fullmatch(text)) is not None:
        return f"{_meanings(text, found[1])}: write no separators, and a point before decimals"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"write a point before decimals: {text.replace(',', '.')}, not {text}"
    if (remedy := _remedy_of_signs(text)) is not None:
        return remedy
    if not is_odd or not text:
        return words_as_numbers(column)
    written = json.dumps(text[:20], ensure_ascii=False)
    return (
        f"write a number there, or leave such rows out; missing: [{written}], beside the path, "
        "says that such cells stand for no value, which {type: fill} among data.transforms fills in"
    )
