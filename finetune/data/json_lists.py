"""Read lists of a JSON object that is larger than memory should hold, one entry after another."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from finetune.disk import reason_of
from finetune.errors import FinetuneError
from finetune.reading import MAX_JSON_BYTES, parse_json_at

MAX_LISTS_BYTES = 2 << 30
"""Most bytes of such a file."""
_PIECE = 1 << 20
"""Characters that are read at once."""
_BLANK = re.compile(r"[ \t\r\n]*")
_OF_NUMBER = frozenset("+-.0123456789eE")
"""Characters of numbers: the end of a number is seen only by what follows."""


def read_lists(path: Path, kept: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """Return some lists of the object that a JSON file holds; the rest of the file is passed over.

    Args:
        path: The file.
        kept: Keys of the lists that are wanted, each with the keys that are kept of its entries.
            An entry that is no object is kept as it is.

    Raises:
        FinetuneError: it cannot be read, is no JSON object, has such a key twice, or exceeds a
            limit.
    """
    where = str(path)
    found: dict[str, list[Any]] = {}
    try:
        if (size := path.stat().st_size) > MAX_LISTS_BYTES:
            most = f"at most {MAX_LISTS_BYTES >> 30} GiB are read"
            raise FinetuneError(f"holds {size / 2**30:.1f} GiB of JSON; {most}", where=where)
        with path.open(encoding="utf-8") as file:
            text = _Text(file, where)
            for key in text.members():
                if text.next_mark() != "[":
                    text.value()
                elif key not in kept:
                    for _ in text.entries():  # such a list may be larger than a value may be
                        pass
                elif key in found:
                    raise FinetuneError(f"has the key {key!r} twice", where=where)
                else:
                    found[key] = [_slim(entry, kept[key]) for entry in text.entries()]
    except (OSError, UnicodeDecodeError) as error:
        is_text = isinstance(error, UnicodeDecodeError)
        reason = "not UTF-8" if is_text else reason_of(error).lower()  # type: ignore[arg-type]
        raise FinetuneError(f"cannot be read: {reason}", where=where) from error
    return found


def _slim(entry: Any, kept: Sequence[str]) -> Any:
    """Return an entry with the wanted keys alone."""
    return {key: entry[key] for key in kept if key in entry} if isinstance(entry, dict) else entry


class _Text:
    """The text of a JSON file, of which a piece is in memory.

    Args:
        file: The file.
        where: Its name for messages.
    """

    def __init__(self, file: TextIO, where: str) -> None:
        self._file, self._where = file, where
        self._held, self._at, self._passed = "", 0, 0
        self._has_ended = False

    def members(self) -> Iterator[str]:
        """Yield each key of the object; its value is to be read before the next one."""
        self._take("{")
        while self.next_mark() != "}":
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong()
            self._take(":")
            yield key
            self._separate("}")
        self._take("}")
        if self.next_mark():
            raise self._wrong()

    def entries(self) -> Iterator[Any]:
        """Yield each entry of the list that comes next."""
        self._take("[")
        while self.next_mark() != "]":
            yield self.value()
            self._separate("]")
        self._take("]")

    def value(self) -> Any:
        """Return the value that comes next."""
        mark = self.next_mark()
        while True:
            try:
                value, end = parse_json_at(self._held, self._at, self._where)
            except FinetuneError:
                # It may go on in the next piece; each attempt reads twice as much as the last.
                if self._has_ended or len(self._held) - self._at > MAX_JSON_BYTES:
                    raise
                self._read(len(self._held) - self._at)
                continue
            is_cut = end == len(self._held) or self._held[end] in _OF_NUMBER
            if mark in _OF_NUMBER and is_cut and not self._has_ended:
                self._read()
                continue
            self._at = end
            return value

    def next_mark(self) -> str:
        """Return the next character that is not blank, without taking it; empty at the end."""
        while True:
            blank = _BLANK.match(self._held, self._at)
            assert blank is not None  # it may be empty
            self._at = blank.end()
            if self._at < len(self._held) or self._has_ended:
                return self._held[self._at : self._at + 1]
            self._read()

    def _take(self, mark: str) -> None:
        """Take a character that must come next."""
        if self.next_mark() != mark:
            raise self._wrong()
        self._at += 1

    def _separate(self, last: str) -> None:
        """Take a comma with something behind it; nothing before the end of a list or object."""
        if self.next_mark() == last:
            return
        self._take(",")
        if self.next_mark() == last:
            raise self._wrong()

    def _read(self, more: int = 0) -> None:
        """Read on; what was taken is forgotten."""
        piece = self._file.read(max(_PIECE, more))
        self._has_ended = not piece
        self._passed += self._at
        self._held, self._at = self._held[self._at :] + piece, 0

    def _wrong(self) -> FinetuneError:
        """Return the error for what comes next."""
        place = self._passed + self._at
        return FinetuneError(f"not JSON at character {place:,}", where=self._where)
