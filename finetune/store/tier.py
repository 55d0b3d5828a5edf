"""The files (or arrays in memory) of all outputs of a store, read and written together."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from finetune.store.layout import Block, Column, Layout, rows_file
from finetune.store.ragged_rows import Spans, read_padded, to_tensor
from finetune.store.units import FileUnits, MemoryUnits, Units


@dataclass(frozen=True, slots=True)
class Tier:
    """All outputs of a store, either on disk or in memory."""

    outputs: Sequence[tuple[Column, Units]]
    """Each output with its array of units."""

    @classmethod
    def in_memory(cls, layout: Layout) -> Self:
        """Allocate memory for every row at its largest expected length."""
        counts = [layout.num_rows * column.units_per_row for column in layout.columns]
        pairs = zip(layout.columns, counts, strict=True)
        return cls([(column, MemoryUnits(count, column.unit)) for column, count in pairs])

    @classmethod
    def on_disk(cls, layout: Layout, folder: Path, resident_bytes: float) -> Self:
        """Open the files of all outputs, which share `resident_bytes` (see `FileUnits`)."""
        share = resident_bytes / len(layout.columns)
        paths = [folder / rows_file(number) for number in range(len(layout.columns))]
        pairs = zip(layout.columns, paths, strict=True)
        return cls([(column, FileUnits(path, column.unit, share)) for column, path in pairs])

    @property
    def size_bytes(self) -> int:
        """Bytes of all outputs up to the last written unit."""
        return sum(column.unit.num_bytes * units.end for column, units in self.outputs)

    def size_with(self, spans: Spans) -> int:
        """Return `size_bytes` as it would be with these rows added."""
        return sum(
            column.unit.num_bytes * max(units.end, spans.end(column))
            for column, units in self.outputs
        )

    @property
    def ragged_end(self) -> int:
        """Index of the first unit that is free in every ragged output."""
        return max(units.end for units in self._ragged())

    @property
    def ragged_whole(self) -> int:
        """Number of units that every ragged output has."""
        return min(len(units) for units in self._ragged())

    def gather(self, spans: Spans) -> list[Block]:
        """Return the units of rows: for each output, (B, ...), or (T, ...) where it is ragged."""
        return [units.take(spans.places(column)) for column, units in self.outputs]

    def put(self, spans: Spans, blocks: Sequence[Block]) -> None:
        """Write the units of rows, as `gather` returns them.

        Raises:
            StoreFullError: the disk is full. Part may have been written.
        """
        for (column, units), block in zip(self.outputs, blocks, strict=True):
            units.put(spans.places(column), block)

    def read(self, spans: Spans, length: int | None) -> dict[str, Tensor]:
        """Return the tensors of rows, (B, ...), or (B, L, ...) where they are ragged.

        These are padded with zeros, to L = `length` or the longest of them.
        """
        return {
            column.name: read_padded(column, units, spans, length)
            if column.spec.ragged
            else to_tensor(column, units.take(spans.rows))
            for column, units in self.outputs
        }

    def read_flat(self, spans: Spans) -> dict[str, Tensor]:
        """Return the tensors of rows, (B, ...), or (T, ...) where they are ragged: end to end."""
        pairs = zip(self.outputs, self.gather(spans), strict=True)
        return {column.name: to_tensor(column, block) for (column, _), block in pairs}

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Keep other processes from appending to the same ragged files meanwhile."""
        _, first = self.outputs[0]
        if not self._ragged() or not isinstance(first, FileUnits):
            yield
            return
        fcntl.flock(first.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(first.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back files and memory."""
        for _, units in self.outputs:
            units.close()

    def _ragged(self) -> list[Units]:
        return [units for column, units in self.outputs if column.spec.ragged]
