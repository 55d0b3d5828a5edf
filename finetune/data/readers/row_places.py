"""Where the rows of a table were read: file, row and line, for messages."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Places:
    """Where each row of a table stands.

    Args:
        files: The files, in the user's words.
        starts: The number of rows before each file.
        lines: The line on which each row begins, from 1; 0 where the file has no lines, and empty
            where no file has any.
    """

    files: tuple[str, ...]
    starts: tuple[int, ...] = (0,)
    lines: Sequence[int] = ()

    @classmethod
    def of(cls, name: str) -> "Places":
        """Return the places of rows that come from one thing without lines."""
        return cls((name,))

    def told(self, row: int) -> str:
        """Name one row, counted from 0: `row 3 of data.csv`, or `row 3 of data.csv (line 7)`.

        Rows are told from 1 and without a header. A line is named where it cannot be told from
        the row: where rows before take several lines, or lines are empty.
        """
        file = bisect_right(self.starts, row) - 1
        number = row - self.starts[file] + 1
        line = self.lines[row] if row < len(self.lines) else 0
        more = f" (line {line})" if line not in (0, number, number + 1) else ""
        return f"row {number} of {self.files[file]}{more}"


THE_INPUT = Places.of("the input")
"""Where samples stand that are handed over in Python."""
