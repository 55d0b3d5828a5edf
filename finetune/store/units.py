"""Files of rows: arrays of fixed-size units, and the outputs of samples in them.

A unit is a sample, or for ragged outputs a token. Each output has a file of its own, in the store's
folder or without a name where no folder can be used.

Letters: B samples, P units, T tokens of all samples, L tokens of the longest.
"""

import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.disk import descriptor_to_change, nameless_file
from finetune.store.layout import (
    Block,
    Column,
    Rows,
    Spans,
    StoreError,
    Unit,
    os_errors_named,
)

_READ_AHEAD = 128 << 10
"""Bytes that Linux reads ahead by default."""
_WITHOUT_NAME = Path("rows in memory")
"""Shown in messages in place of the path of a file without a name."""


class FileUnits:
    """Units in a file: written by `pwrite`, read by a memory map, or by `pread` if it cannot map.

    Writing through a map would kill the process with SIGBUS when the disk of a sparse file is
    full; `pwrite` raises an error instead. Mapped pages count as resident memory, but they belong
    to the file cache: the system takes them back when it needs memory. Copying rows into memory of
    our own would not be faster: a map of cached pages is read at the same speed.

    Args:
        path: An existing file; None makes one without a name, which is gone when this object is.
        unit: Its element.
        size: Bytes of a file without a name at the beginning.
    """

    def __init__(self, path: Path | None, unit: Unit, size: int = 0) -> None:
        self._path = path or _WITHOUT_NAME
        self._unit = unit
        with os_errors_named(self._path):
            self.descriptor = nameless_file() if path is None else descriptor_to_change(path)
            self._close = weakref.finalize(self, os.close, self.descriptor)  # at the latest
            if path is None:
                os.ftruncate(self.descriptor, size)
        self._cells = self._unit.zeros(0)

    def __len__(self) -> int:
        return os.fstat(self.descriptor).st_size // self._unit.num_bytes

    @property
    def end(self) -> int:
        """Index of the first unit of which no byte is written."""
        return -(-os.fstat(self.descriptor).st_size // self._unit.num_bytes)

    def take(self, places: Rows) -> Block:
        """Return copies of the units at `places`, (P,), as (P, ...). Past the end, anything."""
        # The file may have grown since it was mapped, which is rare: so the map is tried first.
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
            StoreError: the disk or a quota is full, for example.
        """
        # Rows of a batch in order are mostly neighbours: a call for each run, not for each row.
        with os_errors_named(self._path):
            for first, last in _runs(places):
                self._write_run(block[first:last], int(places[first]) * self._unit.num_bytes)

    def empty(self) -> None:
        """Remove all units. Only for files that no other process has open."""
        # Reading mapped bytes that are gone would kill the process with SIGBUS.
        self._cells = self._unit.zeros(0)
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Release the file and the memory."""
        self._cells = self._unit.zeros(0)
        self._close()
        self.descriptor = -1  # its number may soon be another file's

    def _map(self) -> bool:
        """Map the file as long as it is now; return False if this process may not map as much.

        A map is released with the last array of it.
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
        if size > _half_of_memory() and self._unit.num_bytes < _READ_AHEAD:
            # When small units are read at random places, read-ahead would evict pages that are
            # needed.
            pages.madvise(mmap.MADV_RANDOM)
        self._cells = np.frombuffer(pages, self._unit.dtype).reshape(count, *self._unit.shape)
        return True

    def _read(self, places: Rows) -> Block:
        """Do what `take` does without a map, by a system call for each run of places."""
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


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One output of a store, and the file with its units."""

    column: Column
    units: FileUnits

    def gather(self, spans: Spans) -> Block:
        """Return the units of rows, (B, ...), or (T, ...) where they are ragged."""
        return self.units.take(spans.places(self.column))

    def put(self, spans: Spans, block: Block) -> None:
        """Write the units of rows, as `gather` returns them.

        Raises:
            StoreError: the disk is full, for example. Part may have been written.
        """
        self.units.put(spans.places(self.column), block)

    def read(self, spans: Spans, length: int | None) -> Tensor:
        """Return rows, (B, ...), or (B, L, ...) where they are ragged.

        These are padded with zeros, to L = `length` or the longest of them.
        """
        if not self.column.spec.ragged:
            return self.to_tensor(self.units.take(spans.rows))
        longest = int(spans.lengths.max(initial=0))
        length = longest if length is None else length
        if length < longest:
            name = self.column.name
            raise ValueError(f"{name!r}: {length} tokens are fewer than the {longest} stored")
        block = self.units.take(spans.padded_places(length).reshape(-1))
        padding = np.arange(length) >= spans.lengths[:, None]
        block[padding.reshape(-1)] = 0
        return self.to_tensor(block.reshape(*padding.shape, *block.shape[1:]))

    def to_tensor(self, block: Block) -> Tensor:
        """Return the tensor whose units are `block`, in as many axes. It shares their memory."""
        tensor, column = torch.from_numpy(block), self.column
        if column.stored == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        return (
            tensor if column.stored == column.spec.dtype else tensor.to(_dtype(column.spec.dtype))
        )

    def to_block(self, value: Tensor, lengths: Rows) -> Block:
        """Return the units of rows: `value` is (B, ...), or (B, L, ...) where they are ragged.

        Raises:
            StoreError: a value is too large for the dtype that it is to be stored in.
        """
        column = self.column
        expected = (column.spec.dtype, column.unit.shape)
        unit_axis = 2 if column.spec.ragged else 1
        actual = (str(value.dtype).removeprefix("torch."), tuple(value.shape[unit_axis:]))
        if actual != expected:
            raise ValueError(f"{column.name!r}: {actual}, not {expected}")
        # Padding is not stored: it is read as zeros.
        value = value.detach().cpu()
        if column.spec.ragged:
            if len(lengths) and lengths.max() > value.shape[1]:
                raise ValueError(f"{column.name!r}: lengths go beyond {value.shape[1]}")
            value = value[torch.arange(value.shape[1]) < torch.from_numpy(lengths)[:, None]]
        stored = value.to(_dtype(column.stored)).contiguous()
        if column.stored != column.spec.dtype and bool((stored.isinf() & value.isfinite()).any()):
            raise StoreError(f"{column.name!r} has values too large for {column.stored}")
        return (stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored).numpy()


@contextmanager
def locked(units: FileUnits) -> Iterator[None]:
    """Keep other processes that ask for it from locking the same file meanwhile."""
    fcntl.flock(units.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(units.descriptor, fcntl.LOCK_UN)


@cache
def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@cache
def _half_of_memory() -> int:
    """Return half the machine's memory in bytes: the file cache hardly gets more."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _in_bytes(block: Block) -> memoryview:
    return block.reshape(-1).view(np.uint8).data


def _runs(places: Rows) -> Iterator[tuple[int, int]]:
    """Yield `(start, stop)` for each maximal run of consecutive integers in `places`.

    Both are positions in `places`; `stop` is exclusive.
    """
    if len(places):
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        yield from pairwise([0, *cuts.tolist(), len(places)])
