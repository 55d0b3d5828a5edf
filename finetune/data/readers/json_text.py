"""Read the values of a JSON text one after another, with a piece of the text in memory."""

import re
from typing import Any, TextIO

from finetune.errors import FinetuneError
from finetune.reading import MAX_JSON_BYTES, parse_json_at

_READ_AT_ONCE = 1 << 20
"""Characters of a text that are read at once, at least."""
_BLANK = re.compile(r"[ \t\r\n]*")
_OF_NUMBER = frozenset(["", *"+-.0123456789eE"])
"""Characters of numbers, and nothing, which stands at the end of a piece."""


class JsonText:
    """A JSON text of any length, read from its file only as far as the next value reaches.

    Args:
        file: The file, behind `begins`.
        name: Name of the file, for messages.
        begins: The text that was read already.
        line: Number of the line on which that begins.
    """

    def __init__(self, file: TextIO, name: str, begins: str = "", line: int = 1) -> None:
        self._file = file
        self.name = name
        self._text = begins
        self._position = self._counted = self._passed = 0
        self._line = line

    @property
    def line(self) -> int:
        """Number of the line of the next character."""
        # Only from the last call on: from the beginning, the count would take quadratic time.
        self._count_lines()
        return self._line

    @property
    def place(self) -> int:
        """Position of the next character in the whole text, from 0."""
        return self._passed + self._position

    @property
    def where(self) -> str:
        """Place of the next character, for messages."""
        return f"{self.name}:{self.line}"

    def next(self) -> str:
        """Move to the next character that is not blank and return it; "" at the end."""
        while True:
            self._position = after_blanks(self._text, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def skip(self) -> None:
        """Move behind the next character."""
        self._position += 1

    def value(self) -> Any:
        """Return the value that comes next, and move behind it.

        Raises:
            FinetuneError: it is not JSON, or exceeds a limit.
        """
        is_number = self.next() in _OF_NUMBER
        while True:
            try:
                value, end = parse_json_at(self._text, self._position, self.where)
            except FinetuneError:
                # more of a value that is longer than the limit would be refused just the same
                if len(self._text) - self._position > MAX_JSON_BYTES:
                    raise FinetuneError(
                        f"holds no JSON value within {MAX_JSON_BYTES >> 20} MiB", where=self.where
                    ) from None
                if not self._read_on():
                    raise
            else:
                # The end of a number is seen only by what follows.
                is_cut = is_number and self._text[end : end + 1] in _OF_NUMBER
                if is_cut and self._read_on():
                    continue
                self._position = end
                return value

    def _read_on(self) -> bool:
        """Read as much again as is still ahead; return False at the end of the file."""
        # Doubling keeps the number of attempts to parse one long value small.
        self._count_lines()
        # After the count, since the text up to here is dropped with its line breaks.
        self._passed += self._position
        ahead = self._text[self._position :]
        more = self._file.read(max(_READ_AT_ONCE, len(ahead)))
        self._text, self._position, self._counted = ahead + more, 0, 0
        return more != ""

    def _count_lines(self) -> None:
        """Count the line breaks up to here, once each."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position


def after_blanks(text: str, position: int) -> int:
    """Return the position of the next character that is not blank."""
    found = _BLANK.match(text, position)
    return found.end() if found else position
