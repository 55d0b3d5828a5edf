"""Places of table rows for messages: file, row and line."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Places:
    """File, row number and line of each row of a table.

    Args:
        files: Names of the files.
        starts: Number of rows before each file.
        lines: Line at which each row begins, from 1; 0 if the file has no lines, and empty if no
            file has any.
        rows: Number of each row before some were left out, from 0; empty if none was.
    """

    files: tuple[str, ...]
    starts: tuple[int, ...] = (0,)
    lines: Sequence[int] = ()
    rows: Sequence[int] = ()

    @classmethod
    def of(cls, name: str) -> "Places":
        """Return the places of rows from one source without lines."""
        return cls((name,))

    def at(self, rows: Sequence[int]) -> "Places":
        """Return the places of some of the rows."""
        before = self.rows
        return replace(self, rows=[before[row] for row in rows] if before else rows)

    def told(self, row: int) -> str:
        """Return the place of a row, counted from 0, as `row 3 of data.csv (line 7)`.

        Rows count from 1, without the header. The line is added if it does not follow from the row,
        because earlier rows have several lines, or lines are empty.
        """
        row = self.rows[row] if self.rows else row
        # A file without rows starts where the next one does: of equal starts the last has the row.
        file = bisect_right(self.starts, row) - 1
        number = row - self.starts[file] + 1
        line = self.lines[row] if row < len(self.lines) else 0
        # Line 1 holds the names, so row n is expected in line n + 1; in JSON in line n.
        more = f" (line {line})" if line not in (0, number, number + 1) else ""
        return f"row {number} of {self.files[file]}{more}"


THE_INPUT = Places.of("the input")
"""Places of samples that are passed in from Python."""
