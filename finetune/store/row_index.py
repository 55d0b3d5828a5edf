"""The row index of a store: which rows are written, where, and which this process has verified."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.store.layout import Layout, Rows, Spans
from finetune.store.row_checksums import EMPTY, Checksums
from finetune.store.units import FileUnits


class RowIndex:
    """Checksums and positions of rows, shared by all processes, and which this process verified.

    Args:
        layout: What the store holds.
        folder: Where its files are; None keeps it in files without names.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self._units = {
            name: FileUnits(folder and folder / name, unit, layout.num_rows * unit.num_bytes)
            for name, unit in layout.index_files().items()
        }
        self._num_rows = layout.num_rows
        # One more element at each end, always EMPTY: `take` with mode "clip" maps numbers out of
        # range to them.
        self._bordered: Checksums = np.zeros(layout.num_rows + 2, np.uint64)
        self._known = self._bordered[1:-1]
        self._known_places: NDArray[np.int64] = np.zeros(
            (layout.num_rows if layout.ragged else 0, 2), np.int64
        )

    def checksums(self, rows: Rows) -> Checksums:
        """Return the present checksums of rows; `EMPTY` where a row is not written."""
        return self._units["seals"].take(rows)

    def written(self, start: int = 0, stop: int | None = None) -> Rows:
        """Return the numbers of all rows from `start` to before `stop` that have a checksum."""
        stop = self._num_rows if stop is None else min(stop, self._num_rows)
        return np.flatnonzero(self.checksums(np.arange(start, stop))) + start

    def spans(self, rows: Rows) -> Spans:
        """Return where rows lie according to the index file, which may be damaged."""
        if "index" not in self._units:
            return Spans(rows, rows, np.ones_like(rows))
        places = self._units["index"].take(rows)
        return Spans(rows, places[:, 0], places[:, 1])

    def is_known(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows this process has verified and whose checksum is still the same."""
        known = self._known[rows]
        # If the checksum differs from the verified one, another process has erased or rewritten the
        # row.
        same: NDArray[np.bool_] = (known != EMPTY) & (known == self.checksums(rows))
        return same

    def were_known(self, rows: Rows) -> bool:
        """Tell whether this process verified all these rows at some time.

        False if a number is beyond the rows.
        """
        known = self._bordered.take(rows + 1, mode="clip")
        return bool(np.count_nonzero(known) == len(rows))

    def known_spans(self, rows: Rows) -> Spans:
        """Return where verified rows lie, as of the time when they were verified.

        Lengths are left out where no output is ragged: this runs in every step.
        """
        if not len(self._known_places):
            return Spans(rows, rows, rows[:0])
        places = self._known_places[rows]
        return Spans(rows, places[:, 0], places[:, 1])

    def learn(self, spans: Spans, checksums: Checksums) -> None:
        """Remember that these rows were verified, with these positions and checksums."""
        if len(self._known_places):
            self._known_places[spans.rows] = np.stack([spans.starts, spans.lengths], axis=1)
        self._known[spans.rows] = checksums

    def record(self, spans: Spans, checksums: Checksums) -> None:
        """Mark rows as written: first their positions, then the checksums that make them valid."""
        # After a kill in between, the position has no checksum, so the row counts as not written.
        if "index" in self._units:
            places = np.stack([spans.starts, spans.lengths], axis=1)
            self._units["index"].put(spans.rows, places)
        self._units["seals"].put(spans.rows, checksums)
        self.learn(spans, checksums)

    def erase(self, rows: Rows) -> None:
        """Mark rows as not written."""
        self._units["seals"].put(rows, np.zeros(len(rows), np.uint64))
        self._known[rows] = EMPTY

    def close(self) -> None:
        """Close its files."""
        for units in self._units.values():
            units.close()
