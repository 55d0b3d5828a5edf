"""Cells that mean no value, such as `NA`, and cells that are numbers, or are meant as such."""

import re
from collections.abc import Iterable

from finetune.data.cells import reads_as_number

MARKS = ("NA", "N/A", "n/a", "NaN", "nan", "NULL", "Null", "null", "None", "?", "-", "--")
"""Words that tables use for a missing value, where all else is numbers."""
_SURE = frozenset({"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"})
"""Those that are hardly ever a category either."""

_MARKED_NUMBER = re.compile(
    r"[-+]?[€$£¥]?\s?[-+]?(\d+|\d{1,3}([.,' ]\d{3})+)([.,]\d+)?\s?[%€$£¥]?", re.ASCII
)
"""A number of a person: decimal comma, thousands that are set apart, a currency, per cent."""
_SIGNS_OF_PERSONS = frozenset(".,' €$£¥%")
"""Signs that tell such a number from digits that are a name, as `01` is."""


def marked_number(values: Iterable[str]) -> str | None:
    """Return the first cell that is a number for people alone, if all cells are numbers; or None.

    `225,75`, `$1,200`, `12 %` and `5` between blanks are such: they are read as words, each a
    category. Codes such as `01` are words as well, but meant as such.
    """
    cells = [*values]
    if not all(_MARKED_NUMBER.fullmatch(cell.strip()) for cell in cells):
        return None
    return next((cell for cell in cells if _is_for_people(cell)), None)


def _is_for_people(cell: str) -> bool:
    """Tell whether a number is written with marks or blanks, and is no code."""
    if is_plain_number(cell.strip()):
        return cell != cell.strip()
    return not _SIGNS_OF_PERSONS.isdisjoint(cell.strip())


def is_plain_number(cell: object) -> bool:
    """Tell whether a cell is a finite number, as a text or as such."""
    if isinstance(cell, bool):
        return False
    if isinstance(cell, int | float):
        # NaN is not equal to itself.
        return cell == cell and abs(cell) != float("inf")
    return (
        isinstance(cell, str)
        and cell.lstrip("+-").lower() not in ("nan", "inf")
        and reads_as_number(cell)
    )


def marks_among(values: Iterable[object]) -> set[str]:
    """Return the words for a missing value that the different values of a column hold."""
    given = [value for value in values if value not in ("", None)]
    found = {value for value in given if isinstance(value, str) and value in MARKS}
    rest = [value for value in given if value not in found]
    if found and rest and all(map(is_plain_number, rest)):
        return found
    return found & _SURE
