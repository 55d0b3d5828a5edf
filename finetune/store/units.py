"""Arrays of fixed-size units, in a file or in memory, read and written by index."""

import errno
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from finetune.disk import descriptor_to_change, reason_of
from finetune.store.layout import Block, Rows, StoreError, StoreFullError, Unit

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_AHEAD = 128 << 10
"""Bytes that Linux reads ahead by default."""


class Units(Protocol):
    """An array of units that grows when units are written behind its end."""

    def __len__(self) -> int:
        """Return the number of complete units."""
        ...

    @property
    def end(self) -> int:
        """Index of the first unit of which no byte is written."""
        ...

    def take(self, places: Rows) -> Block:
        """Return copies of the units at `places`, (P,), as (P, ...). Past the end, anything."""
        ...

    def put(self, places: Rows, block: Block) -> None:
        """Write `block`, (P, ...) and contiguous, to `places`, (P,)."""
        ...

    def close(self) -> None:
        """Release file and memory."""
        ...


class FileUnits:
    """Units in a file: written by `pwrite`, read by a memory map, or by `pread` if it cannot map.

    Writing through a map would kill the process with SIGBUS when the disk of a sparse file is
    full; `pwrite` raises an error instead. Mapped pages count as resident memory, but they belong
    to the file cache: the system takes them back when it needs memory.

    Args:
        path: An existing file.
        unit: Its element.
        resident_bytes: For larger files the system is told not to read ahead: for scattered small
            units, read-ahead would evict pages that are needed.
    """

    def __init__(self, path: Path, unit: Unit, resident_bytes: float) -> None:
        self._path = path
        self._unit = unit
        self._resident_bytes = resident_bytes
        with os_errors_named(path):
            self.descriptor = descriptor_to_change(path)
        self._close = weakref.finalize(self, os.close, self.descriptor)  # at the latest
        self._cells = self._unit.zeros(0)

    def __len__(self) -> int:
        return os.fstat(self.descriptor).st_size // self._unit.num_bytes

    @property
    def end(self) -> int:
        """Index of the first unit of which no byte is written."""
        return -(-os.fstat(self.descriptor).st_size // self._unit.num_bytes)

    def take(self, places: Rows) -> Block:
        """Return copies of the units at `places`, (P,), as (P, ...). Past the end, anything."""
        try:
            return self._cells.take(places, axis=0)
        except IndexError:
            if not self._map():
                return self._read(places)
        if len(self._cells):
            return self._cells.take(places, axis=0, mode="clip")
        return self._unit.zeros(len(places))

    def put(self, places: Rows, block: Block) -> None:
        """Write `block`, (P, ...) and contiguous, to `places`, (P,): a call for each run of them.

        Raises:
            StoreFullError: the disk or a quota is full.
        """
        with os_errors_named(self._path):
            for first, last in _runs(places):
                self._write_run(block[first:last], int(places[first]) * self._unit.num_bytes)

    def close(self) -> None:
        """Release the file and the memory."""
        self._cells = self._unit.zeros(0)
        self._close()
        self.descriptor = -1  # its number may soon be another file's

    def _map(self) -> bool:
        """Map the file as long as it is now; return False if this process may not map as much.

        A map goes with the last array of it.
        """
        count = len(self)
        if count == len(self._cells):
            return True
        if count == 0:
            self._cells = self._unit.zeros(0)
            return True
        size = count * self._unit.num_bytes
        with os_errors_named(self._path):
            try:
                pages = mmap.mmap(self.descriptor, size, prot=mmap.PROT_READ)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                return False
        if size > self._resident_bytes and self._unit.num_bytes < _READ_AHEAD:
            pages.madvise(mmap.MADV_RANDOM)
        self._cells = np.frombuffer(pages, self._unit.dtype).reshape(count, *self._unit.shape)
        return True

    def _read(self, places: Rows) -> Block:
        """Return what `take` does, by a call for each run of places: zeros past the end."""
        places, back = np.unique(places, return_inverse=True)
        block = self._unit.zeros(len(places))
        with os_errors_named(self._path):
            for first, last in _runs(places):
                rest = _in_bytes(block[first:last])
                offset = int(places[first]) * self._unit.num_bytes
                while rest and (count := os.preadv(self.descriptor, [rest], offset)):
                    rest, offset = rest[count:], offset + count
        return block[back]

    def _write_run(self, block: Block, offset: int) -> None:
        rest = _in_bytes(block)
        while rest:
            count = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[count:], offset + count


class MemoryUnits:
    """Units in memory, of which only what was written takes room.

    Args:
        count: How many are expected.
        unit: What they are.
    """

    def __init__(self, count: int, unit: Unit) -> None:
        self._unit = unit
        self._cells = unit.zeros(count)
        self._end = 0

    def __len__(self) -> int:
        return self._end

    @property
    def end(self) -> int:
        """The first unit behind all that were written."""
        return self._end

    def take(self, places: Rows) -> Block:
        """Return copies of the units at `places`, (P,), as (P, ...). Past the end, anything."""
        if not len(self._cells):
            return self._unit.zeros(len(places))
        return self._cells.take(places, axis=0, mode="clip")

    def put(self, places: Rows, block: Block) -> None:
        """Write `block`, (P, ...) and contiguous, to `places`, (P,)."""
        if len(places) == 0:
            return
        self._end = max(self._end, int(places.max()) + 1)
        if self._end > len(self._cells):
            grown = self._unit.zeros(max(self._end, 2 * len(self._cells)))
            grown[: len(self._cells)] = self._cells
            self._cells = grown
        self._cells[places] = block

    def close(self) -> None:
        """Give back the memory."""
        self._cells, self._end = self._unit.zeros(0), 0


def _in_bytes(block: Block) -> memoryview:
    return block.reshape(-1).view(np.uint8).data


def _runs(places: Rows) -> Iterator[tuple[int, int]]:
    """Yield from where to where `places` go up by one."""
    if len(places):
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        yield from pairwise([0, *cuts.tolist(), len(places)])


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Turn what the system answers into an error that names the file.

    Raises:
        StoreFullError: there is no room.
        StoreError: the system refuses for another reason.
    """
    try:
        yield
    except OSError as error:
        kind = StoreFullError if error.errno in _FULL else StoreError
        raise kind(reason_of(error), where=str(path)) from error
