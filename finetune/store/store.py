"""A store: rows that are computed once per sample and read many times.

Each output has a file on disk; rows are also kept in memory if all of them fit. A row counts as
written once it has a checksum, which is written after its bytes (`row_checksums.py`). Each process
compares a row with its checksum before it uses the row for the first time. So a process or machine
may stop at any moment without a repair afterwards, and a flipped bit is detected when it is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from finetune.store.directory import Claim, claim_store
from finetune.store.layout import (
    Block,
    Labels,
    Layout,
    Meta,
    Rows,
    RowSpec,
    StoreError,
    StoreFullError,
)
from finetune.store.ragged_rows import Spans, to_block
from finetune.store.row_checksums import EMPTY, Checksummer
from finetune.store.row_index import RowIndex
from finetune.store.tier import Tier
from finetune.store.verdicts import Verdicts

__all__ = ["RowSpec", "Store", "StoreError", "StoreFullError"]

_AT_ONCE = 64 << 20
"""Bytes of rows that are verified in one pass."""
_GIB = 1 << 30


class Store:
    """The rows of one key, made by `Store.open`. Indices are numbers of samples, (B,).

    Several processes may open the same store, each with its own object. An object is not
    thread-safe, and must not be used in a forked process.

    Args:
        meta: What it holds.
        claim: Its folder, locked by this process; None keeps rows in memory only.
        memory_bytes: All rows are also kept in memory if they fit; else they are read from
            memory-mapped files.
        disk_bytes: How large the files may grow.
    """

    def __init__(
        self, meta: Meta, claim: Claim | None, *, memory_bytes: float, disk_bytes: float
    ) -> None:
        layout = meta.layout
        self.meta = meta
        self._claim = claim
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._notes = list(claim.notes) if claim else []
        self._num_damaged = self._num_told = 0
        self._checksummer = Checksummer.of(
            meta.key,
            [column.unit.num_bytes for column in layout.columns],
            [column.spec.ragged for column in layout.columns],
        )
        self._index = RowIndex(layout, claim.folder if claim else None)
        self._disk = Tier.on_disk(layout, claim.folder, memory_bytes) if claim else None
        self._memory: Tier | None = None
        if layout.size_bytes <= memory_bytes:
            with self._may_lack_memory():
                self._memory = Tier.in_memory(layout)

    @classmethod
    def open(
        cls,
        folder: Path,
        key: str,
        specs: Mapping[str, RowSpec],
        num_rows: int,
        *,
        memory_gb: float,
        disk_gb: float,
        store_dtype: str | None = None,
        facts: Labels | None = None,
        evicts: bool = True,
    ) -> Self:
        """Open the store of `key` below `folder` with the rows it has, or create it.

        Args:
            folder: Where all stores are, see `cache_root`.
            key: Name of the store: a hash of all that the rows depend on.
            specs: Shape and dtype of each output for one sample, by name.
            num_rows: Number of samples.
            memory_gb: GiB of memory; see `Store`.
            disk_gb: GiB that all stores together may take. Least recently used stores are removed
                until this one fits. With 0 it is kept in memory and ends with the process.
            store_dtype: Floating-point values are stored in this dtype and read in their own.
            facts: A few inputs of the key, shown by `finetune cache`.
            evicts: Whether other stores may be removed to make room.

        Raises:
            StoreFullError: it fits neither into memory nor on disk.
            StoreError: an output cannot be stored, or the folder cannot be used.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        layout = Layout.of(specs, num_rows, store_dtype)
        meta = Meta(key, torch.__version__, layout, dict(facts or {}), created)
        limits = {"memory_bytes": memory_gb * _GIB, "disk_bytes": disk_gb * _GIB}
        try:
            if disk_gb <= 0:
                raise StoreFullError("outgrows its memory, and may not use the disk")
            return cls.of(
                meta, claim_store(folder, meta, limits["disk_bytes"], evicts=evicts), **limits
            )
        except StoreError as error:
            if layout.size_bytes > limits["memory_bytes"]:
                raise
            store = cls(meta, None, **limits)
            if disk_gb > 0:
                store._notes.append(f"store {key}: kept in memory only: {error.in_one_line}")
            return store

    @classmethod
    def of(cls, meta: Meta, claim: Claim, *, memory_bytes: float, disk_bytes: float) -> Self:
        """Open a store whose folder is locked; release the lock if that fails. See `Store`."""
        try:
            store = cls(meta, claim, memory_bytes=memory_bytes, disk_bytes=disk_bytes)
            if claim.is_damaged:
                store.has(store.written())
                store._num_told = store.num_damaged
        except BaseException:
            claim.give_up()
            raise
        return store

    def has(self, indices: Tensor) -> Tensor:
        """Tell which rows are written and undamaged, (B,) bool.

        A row that this process has not seen before is read and verified: for all rows at once this
        takes as long as reading the store. `num_valid` only counts checksums.
        """
        rows = self._rows(indices)
        known = self._index.is_known(rows)
        if not known.all():
            new = rows[~known & (self._index.checksums(rows) != EMPTY)]
            self._examine(new)
            known = self._index.is_known(rows)
        return torch.from_numpy(known)

    def read(self, indices: Tensor, length: int | None = None) -> dict[str, Tensor]:
        """Return copies of rows, (B, ...) by name of the output.

        Ragged ones are padded with zeros to the longest of them, or to `length` tokens.

        Raises:
            KeyError: a row is not written; `has` tells which are. Rows that this process verified
                stay readable if another process marks them as damaged.
        """
        spans = self._known_spans(indices)  # before `_tier`: it may drop the rows in memory
        return self._tier.read(spans, length)

    def read_flat(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return copies of rows by name of the output, ragged ones concatenated (T, ...).

        The second value holds the lengths of ragged rows (B,); it is empty if no output is ragged.

        Raises:
            KeyError: a row is not there; `has` tells which are.
        """
        spans = self._known_spans(indices)
        return self._tier.read_flat(spans), torch.from_numpy(spans.lengths)

    def write(
        self, indices: Tensor, values: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> None:
        """Keep rows: `values` are (B, ...) by name of the output. Rows that are there stay.

        Args:
            indices: Numbers of the samples, (B,).
            values: What was computed; ragged ones (B, L, ...), padded behind their end.
            lengths: Tokens of each sample, (B,), needed where an output is ragged.

        Raises:
            StoreFullError: the budget or the disk is full. Rows kept before are as they were.
            StoreError: a value is too large for `store_dtype`, or the disk fails.
            ValueError: values are not those of as many samples, or not of their shape and dtype.
        """
        rows = self._rows(indices)
        given = values if lengths is None else {**values, "lengths": lengths}
        for name, value in given.items():
            if len(value) != len(rows):
                raise ValueError(f"{name!r} has {len(value)} samples, not {len(rows)}")
        with self._tiers()[0].appending():
            fresh = np.flatnonzero(self._index.checksums(rows) == EMPTY)
            if not len(fresh):
                return
            which = torch.from_numpy(fresh)
            spans = self._free_spans(rows[fresh], None if lengths is None else lengths[which])
            blocks = [
                to_block(column, values[column.name].detach().cpu()[which], spans.lengths)
                for column in self.meta.layout.columns
            ]
            if self._disk is not None:
                self._disk.put(spans, blocks)
            self._put_in_memory(spans, blocks)
            self._index.record(
                spans, self._checksummer.checksums(spans.rows, spans.lengths, blocks)
            )

    def discard(self) -> None:
        """Give up every row; the store stays open, and can be filled again.

        Room that ragged rows have taken on disk is free once nobody has the store open.

        Raises:
            StoreFullError: rows were in memory alone, and memory is full.
        """
        self._index.erase(np.arange(self.meta.layout.num_rows))
        if self._memory is not None and self._disk is None:
            self._memory.close()
            with self._may_lack_memory():
                self._memory = Tier.in_memory(self.meta.layout)

    def leave_memory(self) -> None:
        """Let go of the rows that are in memory, where they are on disk as well."""
        if self._disk is not None and self._memory is not None:
            self._memory.close()
            self._memory = None

    def written(self) -> Tensor:
        """Return the numbers of written rows, ascending. `has` tells whether they are undamaged."""
        return torch.from_numpy(self._index.written())

    def verdicts(self, network: str) -> Verdicts:
        """Return the results of trials for `network`, given by its key."""
        return Verdicts(self._claim.folder / "verdicts" if self._claim else None, network)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that all rows will take; 0 if they are read from disk."""
        return max(self.meta.layout.size_bytes, self._memory.size_bytes) if self._memory else 0

    @property
    def num_valid(self) -> int:
        """Number of written rows."""
        return len(self._index.written())

    @property
    def num_damaged(self) -> int:
        """Number of rows that were found damaged since the store was opened."""
        return self._num_damaged

    def take_notes(self) -> list[str]:
        """Return and clear the messages for the user, one line each.

        They tell of damage, of stores removed to make room, of rows moved out of memory.
        """
        notes, self._notes = self._notes, []
        if count := self._num_damaged - self._num_told:
            rows = "1 damaged row is" if count == 1 else f"{count} damaged rows are"
            notes.append(f"store {self.meta.key}: {rows} recomputed")
        self._num_told = self._num_damaged
        return notes

    def close(self) -> None:
        """Close the files and release the lock. Rows stay on disk."""
        if self._claim is not None:
            self._index.close()
            self._claim.give_up()
        for tier in self._tiers():
            tier.close()
        self._claim = self._disk = self._memory = None

    def _rows(self, indices: Tensor) -> Rows:
        rows = _numbers(indices)
        num_rows = self.meta.layout.num_rows
        # seen without its sign, a negative number is too large as well
        if len(rows) and rows.view(np.uint64).max() >= num_rows:
            raise IndexError(f"store {self.meta.key} has {num_rows} rows, not all of {indices}")
        return rows

    def _known_spans(self, indices: Tensor) -> Spans:
        rows = _numbers(indices)
        if not (self._index.were_known(rows) or self.has(indices).all()):
            raise KeyError(f"store {self.meta.key} lacks rows of {indices}")
        return self._index.known_spans(rows)

    @property
    def _tier(self) -> Tier:
        """Where rows are read from: memory if they are there, else disk."""
        tier = self._memory or self._disk
        assert tier is not None
        return tier

    def _tiers(self) -> list[Tier]:
        return [tier for tier in (self._disk, self._memory) if tier is not None]

    def _examine(self, rows: Rows) -> None:
        """Verify rows: remember the undamaged ones, mark the others as not written."""
        tier = self._tiers()[0]
        checksums, spans = self._index.checksums(rows), self._index.spans(rows)
        whole = np.ones(len(rows), np.bool_)
        if self.meta.layout.ragged:
            count = tier.ragged_whole
            # in this order no sum of damaged numbers can overflow
            whole = (spans.lengths >= 0) & (spans.lengths <= count) & (spans.starts >= 0)
            whole &= (spans.starts <= count - spans.lengths) | (spans.lengths == 0)
        for part in _portions(np.flatnonzero(whole), self._row_bytes(spans)):
            blocks = self._gathered(tier, spans.some(part))
            same = (
                self._checksummer.checksums(rows[part], spans.lengths[part], blocks)
                == checksums[part]
            )
            whole[part] = same
            if self._memory is not None and not same.all():
                self._put_in_memory(spans.some(part[same]), tier.gather(spans.some(part[same])))
            else:
                self._put_in_memory(spans.some(part), blocks)
        self._index.learn(spans.some(whole), checksums[whole])
        if len(damaged := rows[~whole]):
            self._index.erase(damaged)
            self._num_damaged += len(np.unique(damaged))

    def _gathered(self, tier: Tier, spans: Spans) -> list[Block]:
        """Return units of rows; if memory is full, drop the rows kept in memory first."""
        if self._memory is not None:
            with self._may_lack_memory():
                return tier.gather(spans)
        return tier.gather(spans)

    def _put_in_memory(self, spans: Spans, blocks: Sequence[Block]) -> None:
        """Keep rows in memory too, while the memory budget allows it.

        Raises:
            StoreFullError: the budget is used up and there is no disk.
        """
        if self._memory is None:
            return
        if self._memory.size_with(spans) <= self._memory_bytes:
            with self._may_lack_memory():
                self._memory.put(spans, blocks)
        elif self._disk is None:
            raise StoreFullError(
                f"store {self.meta.key} outgrows its memory", hint="memory_gb is its budget"
            )
        else:
            self.leave_memory()

    @contextmanager
    def _may_lack_memory(self) -> Iterator[None]:
        """Drop the rows kept in memory if the block runs out of memory and there is a disk.

        Raises:
            StoreFullError: there is no disk.
        """
        try:
            yield
        except MemoryError as error:
            if self._disk is None:
                raise StoreFullError(f"store {self.meta.key}: memory is full") from error
            self.leave_memory()
            self._notes.append(f"store {self.meta.key}: memory is full, rows are read from disk")

    def _free_spans(self, rows: Rows, lengths: Tensor | None) -> Spans:
        """Return positions for new rows: ragged ones are appended."""
        if not self.meta.layout.ragged:
            return Spans(rows, rows, np.ones_like(rows))
        if lengths is None:
            raise ValueError("ragged rows need their lengths")
        counts = lengths.detach().cpu().numpy().astype(np.int64)
        start = self._tiers()[0].ragged_end
        spans = Spans(rows, start + np.cumsum(counts) - counts, counts)
        if self._disk and self._disk.size_with(spans) > self._disk_bytes:
            raise StoreFullError(
                f"store {self.meta.key} outgrows its disk", hint="disk_gb is its budget"
            )
        return spans

    def _row_bytes(self, spans: Spans) -> Rows:
        columns = self.meta.layout.columns
        fixed = sum(column.unit.num_bytes for column in columns if not column.spec.ragged)
        token = sum(column.unit.num_bytes for column in columns if column.spec.ragged)
        return fixed + token * spans.lengths


def _numbers(indices: Tensor) -> Rows:
    numbers: Rows = indices.numpy(force=True).astype(np.int64, casting="same_kind", copy=False)
    return numbers


def _portions(which: Rows, row_bytes: Rows) -> list[Rows]:
    """Cut numbers of rows into parts of about `_AT_ONCE` bytes."""
    if not len(which):
        return []
    portion = np.cumsum(row_bytes[which]) // _AT_ONCE
    return np.split(which, np.flatnonzero(np.diff(portion)) + 1)
