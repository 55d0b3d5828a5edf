"""Read several labels from one cell: a list written as text, or labels with a separator."""

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence, Set as AbstractSet
from typing import NamedTuple

from finetune.config.messages import shown
from finetune.errors import DataError, Key

_CALL = re.compile(
    r"(?:np\.|numpy\.)?(?:array|set|frozenset|tuple|list)\((.*?)(?:,\s*dtype=[^,()]*)?\)", re.DOTALL
)
"""Matches what numpy and Python write around a list; the group is the list itself."""
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ITEM = re.compile(
    r"(?:np\.\w+\()?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|-?\d{1,18}(?:\.0*)?)\)?", re.DOTALL
)
"""Matches a quoted text or a whole number; numpy 2 writes `np.str_('a')`."""
_BETWEEN = re.compile(r"\s*,\s*|\s+")
_OTHER_SEPARATORS = ("|", ";", "\t", "\n", "\u3001", "\uff0c", "\uff1b", "/", "+", "&", " ")
_TELLING = ("|", ";", "\t", "\n", "\u3001", "\uff0c", "\uff1b")
"""Separators that are hardly ever part of a label."""


class LabelList(NamedTuple):
    """The labels of one cell, and whether all of them are the numbers 0 and 1."""

    labels: list[str]
    is_binary: bool


def read_lists(
    cells: Sequence[str], name: str, place: Callable[[int], str], *, is_lenient: bool
) -> list[LabelList] | None:
    """Return the labels of cells that hold lists as Python, JSON and numpy write them, or None.

    Only quoted texts and whole numbers are read, and nothing is evaluated: anything else, such as a
    word without quotes, means that a cell is not a plain list.

    Args:
        cells: A text column.
        name: Name of the column, for messages.
        place: Returns the place of a row, for messages.
        is_lenient: Whether cells that are not plain lists make the whole column ordinary text.

    Raises:
        DataError: some cells are, or look like, plain lists, and one is not.
    """
    if not any(_body(cell) is not None for cell in cells):
        return None
    read = [LabelList([], True) if not cell.strip() else _read_list(cell) for cell in cells]
    plain = [entry for entry in read if entry is not None]
    if len(plain) == len(cells):
        return plain
    if is_lenient:
        return None
    row = read.index(None)
    raise DataError(
        f"column {name!r} holds {shown(cells[row])} in {place(row)}, which is no plain list of "
        "labels, as other cells are or seem to be",
        hint='plain lists: ["a", "b"], [\'a\', \'b\'], [1, 2]; task: {separator: ","} takes cells '
        "for text with that between labels",
        key=("data", "target"),
    )


def listed_labels(cell: str) -> list[str] | None:
    """Return the labels of a cell that is a plain list; None if it is none."""
    read = _read_list(cell)
    return None if read is None else read.labels


def refuse_other_separator(
    cells: Sequence[str], separator: str, name: str, place: Callable[[int], str]
) -> None:
    """Raise if cells are clearly separated by something else than the usual separator.

    A bar, semicolon or tab anywhere is clear. A slash, plus or blank is so only if separating by it
    leaves fewer distinct labels (`drama action` are then two, and `science fiction` is one), or,
    but for a blank, if it shows a label that other cells hold alone.

    Args:
        cells: A text column.
        separator: The usual separator; if any cell contains it, it is right.
        name: Name of the column, for messages.
        place: Returns the place of a row, for messages.

    Raises:
        DataError: another separator is clearly meant.
    """
    if any(separator in cell for cell in cells):
        return
    whole = {cell.strip() for cell in cells if cell.strip()}
    for other in _OTHER_SEPARATORS:
        row = next((row for row, cell in enumerate(cells) if other in cell.strip()), None)
        if row is None:
            continue
        if other in _TELLING or _seems_between(other, whole):
            raise DataError(
                f"column {name!r} holds {shown(cells[row])} in {place(row)}, and no cell holds "
                f"the separator {separator!r}",
                hint=f"task: {{separator: {json.dumps(other)}}} cuts there; "
                f"{{separator: {json.dumps(separator)}}} takes each cell for one label",
                key=_SEPARATOR_KEY,
            )


def _seems_between(separator: str, whole: AbstractSet[str]) -> bool:
    """Tell whether cells seem to hold several labels with a separator that labels may hold too."""
    cut = {cell: [part.strip() for part in cell.split(separator) if part.strip()] for cell in whole}
    # Splitting at the right separator shows labels again and again, at a wrong one new words.
    if len({part for parts in cut.values() for part in parts}) < len(whole):
        return True
    # `fiction` and `science fiction` are two labels, where `a` beside `a+b` is hardly one.
    return separator != " " and any(
        len(parts) > 1 and not whole.isdisjoint(parts) for parts in cut.values()
    )


_SEPARATOR_KEY: Key = ("task", "separator")


def _body(cell: str) -> str | None:
    """Return the text between a list's brackets; None if a cell is no list."""
    text = cell.strip()
    if (called := _CALL.fullmatch(text)) is not None:
        # `set()` and `tuple()` are empty lists.
        text = called.group(1).strip() or "[]"
    is_list = len(text) >= 2 and _BRACKETS.get(text[0]) == text[-1]
    return text[1:-1] if is_list else None


def _read_list(cell: str) -> LabelList | None:
    """Return the labels of a plain list; None if a cell is none."""
    if (body := _body(cell)) is None:
        return None
    labels: list[str] = []
    is_binary, text, position = True, body.strip(), 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None or (label := _label(item.group(1))) is None:
            return None
        labels.append(label)
        # Quoted digits are labels that are called so, not marks for yes and no.
        is_binary = is_binary and item.group(1)[0] not in "'\"" and label in ("0", "1")
        position = item.end()
        if position < len(text):
            between = _BETWEEN.match(text, position)
            if between is None:
                return None
            position = between.end()
    return LabelList(labels, is_binary)


def _label(item: str) -> str | None:
    """Return the label that an item means: the text in quotes, or the number as text; or None."""
    if item[0] not in "'\"":
        return str(int(item.partition(".")[0]))
    try:
        # JSON first: Python reads `"\/"` and pairs of surrogates in another way.
        if item[0] == '"':
            return str(json.loads(item))
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a backslash that escapes nothing
            return str(ast.literal_eval(item))
    except (ValueError, SyntaxError):
        return None
