"""All rows of a store in one place, on disk or in memory."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from finetune.store.columns import Spans, read_padded, to_tensor
from finetune.store.layout import Layout, rows_file
from finetune.store.seals import Bytes
from finetune.store.units import FileUnits, MemoryUnits, Units


@dataclass(frozen=True, slots=True)
class Tier:
    """The rows of a store in one place: on disk, or in memory."""

    layout: Layout
    units: Sequence[Units]
    """One for each output."""

    @classmethod
    def in_memory(cls, layout: Layout) -> Self:
        """Make room in memory for every row, each as long as the longest that is expected."""
        counts = [layout.num_rows * c.row_bytes // c.unit_bytes for c in layout.columns]
        pairs = zip(counts, layout.columns, strict=True)
        return cls(layout, [MemoryUnits(count, column.unit_bytes) for count, column in pairs])

    @classmethod
    def on_disk(cls, layout: Layout, folder: Path, resident_bytes: float) -> Self:
        """Open the files of rows, mapped as far as all of them together may be resident."""
        share = resident_bytes / len(layout.columns)
        numbered = enumerate(layout.columns)
        units = [FileUnits(folder / rows_file(n), c.unit_bytes, share) for n, c in numbered]
        return cls(layout, units)

    @property
    def size_bytes(self) -> int:
        """Bytes up to the last unit written, or laid out."""
        pairs = zip(self.layout.columns, self.units, strict=True)
        return sum(column.unit_bytes * units.end for column, units in pairs)

    @property
    def ragged_end(self) -> int:
        """The first unit that is free in every ragged file."""
        return max(units.end for units in self._ragged())

    @property
    def ragged_whole(self) -> int:
        """How many units every ragged file has."""
        return min(len(units) for units in self._ragged())

    def gather(self, spans: Spans) -> list[Bytes]:
        """Return the bytes of rows: for each output, a block as `Sealer.seals` takes it."""
        pairs = zip(self.layout.columns, self.units, strict=True)
        return [units.take(spans.places(column)) for column, units in pairs]

    def put(self, spans: Spans, blocks: Sequence[Bytes]) -> None:
        """Write the bytes of rows.

        Raises:
            StoreFullError: the disk is full. Part may have been written.
        """
        triples = zip(self.layout.columns, self.units, blocks, strict=True)
        for column, units, block in triples:
            units.put(spans.places(column), block)

    def read(self, spans: Spans, length: int | None) -> dict[str, Tensor]:
        """Return the tensors of rows, ragged ones padded with zeros to `length` or the longest."""
        pairs = zip(self.layout.columns, self.units, strict=True)
        return {
            column.name: read_padded(column, units, spans, length)
            if column.spec.ragged
            else to_tensor(column, units.take(spans.rows), (len(spans.rows),))
            for column, units in pairs
        }

    def read_flat(self, spans: Spans) -> dict[str, Tensor]:
        """Return the tensors of rows, ragged ones end to end."""
        pairs = zip(self.layout.columns, self.gather(spans), strict=True)
        return {column.name: to_tensor(column, block, (len(block),)) for column, block in pairs}

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Keep other processes from appending to the same ragged files meanwhile."""
        first = self.units[0]
        if not self.layout.ragged or not isinstance(first, FileUnits):
            yield
            return
        fcntl.flock(first.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(first.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back files and memory."""
        for units in self.units:
            units.close()

    def _ragged(self) -> list[Units]:
        pairs = zip(self.layout.columns, self.units, strict=True)
        return [units for column, units in pairs if column.spec.ragged]
