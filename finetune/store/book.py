"""The book of a store: which rows are written, where, and which this process has found whole."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.store.columns import Spans
from finetune.store.layout import Layout, Rows
from finetune.store.seals import EMPTY, Seals
from finetune.store.units import FileUnits, MemoryUnits, Units


class Book:
    """Seals and places of rows, shared by all processes, and what this one knows of them.

    Args:
        layout: What the store holds.
        folder: Where the book is kept; None keeps it in memory.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self._units: dict[str, Units] = {
            name: MemoryUnits(layout.num_rows, unit)
            if folder is None
            else FileUnits(folder / name, unit, np.inf)
            for name, unit in layout.books().items()
        }
        self._num_rows = layout.num_rows
        # one more at either end, which stays empty: numbers beyond the rows are cut to it
        self._bordered: Seals = np.zeros(layout.num_rows + 2, np.uint64)
        self._known = self._bordered[1:-1]
        self._known_places: NDArray[np.int64] = np.zeros(
            (layout.num_rows if layout.ragged else 0, 2), np.int64
        )

    def seals(self, rows: Rows) -> Seals:
        """Return the seals that rows bear now, `EMPTY` where there is no row."""
        return self._units["seals"].take(rows)

    def sealed(self) -> Rows:
        """Return the rows that bear a seal."""
        return np.flatnonzero(self.seals(np.arange(self._num_rows)))

    def spans(self, rows: Rows) -> Spans:
        """Return where rows are said to lie. Nothing vouches that it is so."""
        if "index" not in self._units:
            return Spans(rows, rows, np.ones_like(rows))
        places = self._units["index"].take(rows)
        return Spans(rows, places[:, 0], places[:, 1])

    def is_known(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows this process has found whole, and that still bear the same seal."""
        known = self._known[rows]
        same: NDArray[np.bool_] = (known != EMPTY) & (known == self.seals(rows))
        return same

    def were_known(self, rows: Rows) -> bool:
        """Tell whether this process has found all these rows whole, at some time.

        The answer for numbers that no row has is False.
        """
        known = self._bordered.take(rows + 1, mode="clip")
        return bool(np.count_nonzero(known) == len(rows))

    def known_spans(self, rows: Rows) -> Spans:
        """Return where known rows lie, whatever has become of the files since.

        Without lengths where all rows have one, as this is asked in every step.
        """
        if not len(self._known_places):
            return Spans(rows, rows, rows[:0])
        places = self._known_places[rows]
        return Spans(rows, places[:, 0], places[:, 1])

    def learn(self, spans: Spans, seals: Seals) -> None:
        """Note that these rows were found whole, there, under these seals."""
        if len(self._known_places):
            self._known_places[spans.rows] = np.stack([spans.starts, spans.lengths], axis=1)
        self._known[spans.rows] = seals

    def record(self, spans: Spans, seals: Seals) -> None:
        """Seal rows whose bytes are written: first their places, then the seals."""
        if "index" in self._units:
            places = np.stack([spans.starts, spans.lengths], axis=1)
            self._units["index"].put(spans.rows, places)
        self._units["seals"].put(spans.rows, seals)
        self.learn(spans, seals)

    def erase(self, rows: Rows) -> None:
        """Break the seals of rows."""
        self._units["seals"].put(rows, np.zeros(len(rows), np.uint64))
        self._known[rows] = EMPTY

    def close(self) -> None:
        """Close its files."""
        for units in self._units.values():
            units.close()
