"""Find texts that are UTF-8 and were read in another encoding, which shows two signs for one."""

import codecs
from collections.abc import Iterable


def is_called_utf8(encoding: str) -> bool:
    """Tell whether the name of an encoding means UTF-8."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:  # told where the text is read
        return False


def really_utf8(cells: Iterable[object], encoding: str) -> list[int]:
    """Return the positions of texts that are UTF-8 as well, and mean something else in it.

    Args:
        cells: Texts that were read in `encoding`, among anything else.
        encoding: That encoding.
    """
    if is_called_utf8(encoding):
        return []
    return [at for at, cell in enumerate(cells) if _is_utf8(cell, encoding)]


def _is_utf8(cell: object, encoding: str) -> bool:
    """Tell whether a text that was read in `encoding` is also one in UTF-8, and another one."""
    if not isinstance(cell, str) or cell.isascii():
        return False
    try:
        return cell.encode(encoding).decode("utf-8") != cell
    except UnicodeError:
        return False
