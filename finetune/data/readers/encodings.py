"""Find texts that are UTF-8 and were read in another encoding, which shows two signs for one."""

import codecs
from collections.abc import Iterable
from typing import TypeGuard


def is_called_utf8(encoding: str) -> bool:
    """Tell whether the name of an encoding means UTF-8."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:  # told where the text is read
        return False


def really_utf8(cells: Iterable[object], encoding: str) -> tuple[list[int], int]:
    """Return the positions of texts that are UTF-8 as well, and mean something else in it.

    Also returns the number of those that are not, without those of ASCII alone.

    Args:
        cells: Texts that were read in `encoding`, among anything else.
        encoding: That encoding.
    """
    if is_called_utf8(encoding):
        return [], 0
    told = [(at, cell) for at, cell in enumerate(cells) if _tells(cell)]
    found = [at for at, cell in told if _is_utf8(cell, encoding)]
    return found, len(told) - len(found)


def _tells(cell: object) -> TypeGuard[str]:
    """Tell whether a cell is a text that differs in several encodings."""
    return isinstance(cell, str) and not cell.isascii()


def _is_utf8(cell: str, encoding: str) -> bool:
    """Tell whether a text that was read in `encoding` is also one in UTF-8, and another one."""
    try:
        return cell.encode(encoding).decode("utf-8") != cell
    except UnicodeError:
        return False
