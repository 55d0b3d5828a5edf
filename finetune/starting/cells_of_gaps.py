"""Cells that mean no value, such as `NA`, and cells that are numbers."""

from collections.abc import Iterable

from finetune.data.cells import reads_as_number

MARKS = ("NA", "N/A", "n/a", "NaN", "nan", "NULL", "Null", "null", "None", "?", "-", "--")
"""Words that tables use for a missing value, where all else is numbers."""
_SURE = frozenset({"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"})
"""Those that are hardly ever a category either."""


def is_plain_number(cell: object) -> bool:
    """Tell whether a cell is a finite number, as a text or as such."""
    if isinstance(cell, bool):
        return False
    if isinstance(cell, int | float):
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
