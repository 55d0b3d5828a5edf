"""Several labels in one cell: lists written as text, and text with something between the labels."""

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from finetune.config.messages import shown
from finetune.errors import DataError, Key

_CALL = re.compile(
    r"(?:np\.|numpy\.)?(?:array|set|frozenset|tuple|list)\((.*?)(?:,\s*dtype=[^,()]*)?\)", re.DOTALL
)
"""What numpy and Python write around a list; what stands in it is the group."""
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ITEM = re.compile(
    r"(?:np\.\w+\()?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|-?\d{1,18}(?:\.0*)?)\)?", re.DOTALL
)
"""A text in quotes, or a whole number; numpy 2 writes `np.str_('a')`."""
_BETWEEN = re.compile(r"\s*,\s*|\s+")
_OTHER_SEPARATORS = ("|", ";", "\t", "/", " ")
_TELLING = ("|", ";", "\t")
"""Separators that hardly ever are part of a label."""


class LabelList(NamedTuple):
    """The labels of one cell, as text, and whether all of them are the numbers 0 and 1."""

    labels: list[str]
    is_binary: bool


def read_lists(
    cells: Sequence[str], name: str, place: Callable[[int], str], *, is_lenient: bool
) -> list[LabelList] | None:
    """Read cells that hold lists as Python, JSON and numpy write them; None if they hold none.

    Nothing is evaluated but quoted texts: what is neither a quoted text nor a whole number, such
    as a word without quotes, makes a list no plain one.

    Args:
        cells: A column of text.
        name: The column, for messages.
        place: Where a row stands, for messages.
        is_lenient: Whether lists that are no plain ones are text like any other.

    Raises:
        DataError: some cells are plain lists, or look like lists, and one is not.
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


def refuse_other_separator(
    cells: Sequence[str], separator: str, name: str, place: Callable[[int], str]
) -> None:
    """Refuse cells that are plainly cut by another separator than the usual one.

    Told is a bar, a semicolon or a tab anywhere; a slash or a blank only where cutting there
    leaves fewer labels, so that `science fiction` is one label and `drama action` are two.

    Args:
        cells: A column of text.
        separator: The usual one; where a cell holds it, it is right.
        name: The column, for messages.
        place: Where a row stands, for messages.

    Raises:
        DataError: another separator is meant.
    """
    if any(separator in cell for cell in cells):
        return
    whole = {cell.strip() for cell in cells if cell.strip()}
    for other in _OTHER_SEPARATORS:
        row = next((row for row, cell in enumerate(cells) if other in cell.strip()), None)
        if row is None:
            continue
        parts = {part.strip() for cell in whole for part in cell.split(other) if part.strip()}
        if other in _TELLING or len(parts) < len(whole):
            raise DataError(
                f"column {name!r} holds {shown(cells[row])} in {place(row)}, and no cell holds "
                f"the separator {separator!r}",
                hint=f"task: {{separator: {json.dumps(other)}}} cuts there; "
                f"{{separator: {json.dumps(separator)}}} takes each cell for one label",
                key=_SEPARATOR_KEY,
            )


_SEPARATOR_KEY: Key = ("task", "separator")


def _body(cell: str) -> str | None:
    """Return what stands between the brackets of a list; None for a cell that is none."""
    text = cell.strip()
    if (called := _CALL.fullmatch(text)) is not None:
        text = called.group(1).strip() or "[]"
    is_list = len(text) >= 2 and _BRACKETS.get(text[0]) == text[-1]
    return text[1:-1] if is_list else None


def _read_list(cell: str) -> LabelList | None:
    """Return the labels of a plain list; None if it is none."""
    if (body := _body(cell)) is None:
        return None
    labels: list[str] = []
    is_binary, text, position = True, body.strip(), 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None or (label := _label(item.group(1))) is None:
            return None
        labels.append(label)
        is_binary = is_binary and item.group(1)[0] not in "'\"" and label in ("0", "1")
        position = item.end()
        if position < len(text):
            between = _BETWEEN.match(text, position)
            if between is None:
                return None
            position = between.end()
    return LabelList(labels, is_binary)


def _label(item: str) -> str | None:
    """Return the text in quotes, or the whole number as text."""
    if item[0] not in "'\"":
        return str(int(item.partition(".")[0]))
    try:
        if item[0] == '"':
            return str(json.loads(item))
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            return str(ast.literal_eval(item))
    except (ValueError, SyntaxError):
        return None
