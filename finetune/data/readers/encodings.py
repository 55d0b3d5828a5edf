"""Find texts that are UTF-8 and were read in another encoding, which shows two signs for one."""

import codecs
from collections.abc import Iterable, Mapping
from typing import TypeGuard

_MANY_TIMES = 10
"""Different texts that are UTF-8 for each one that is not, from which on it is no chance."""


def is_called_utf8(encoding: str) -> bool:
    """Tell whether the name of an encoding means UTF-8."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:  # told where the text is read
        return False


def really_utf8(
    columns: Mapping[str, Iterable[object]], encoding: str
) -> tuple[dict[str, list[int]], int]:
    """Return the positions of texts that are UTF-8 as well, and mean something else in it.

    By name of the column, and none unless nearly all texts are such: in an encoding with two bytes
    a sign, some signs are UTF-8 by chance. Also returns the number of those that are not, without
    those of ASCII alone.

    Args:
        columns: Cells of one source by column: texts that were read in `encoding`, among anything
            else.
        encoding: That encoding.
    """
    if is_called_utf8(encoding):
        return {}, 0
    found, others = dict[str, list[int]](), list[str]()
    # Each text once: one of two categories may be UTF-8 by chance, and most cells hold it.
    different = set[str]()
    for name, cells in columns.items():
        for at, cell in enumerate(cells):
            if _tells(cell):
                if _is_utf8(cell, encoding):
                    found.setdefault(name, []).append(at)
                    different.add(cell)
                else:
                    others.append(cell)
    is_told = len(different) >= _MANY_TIMES * len(set(others))
    return found if is_told else {}, len(others)


def _tells(cell: object) -> TypeGuard[str]:
    """Tell whether a cell is a text that differs in several encodings."""
    return isinstance(cell, str) and not cell.isascii()


def _is_utf8(cell: str, encoding: str) -> bool:
    """Tell whether a text that was read in `encoding` is also one in UTF-8, and another one."""
    try:
        return cell.encode(encoding).decode("utf-8") != cell
    except UnicodeError:
        return False
