"""A store keeps rows that are computed once for each sample, and read ever after.

Rows lie on disk in a file for each output, and also in memory where all fit. A row counts only
by its seal, written after its bytes (`seals.py`). A process trusts no seal of another one, nor
of its own past, before it has compared it with the bytes, once for each row. So a process or a
machine that stops at any moment leaves nothing to repair, and a flipped bit is found when met.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from finetune.store.book import Book
from finetune.store.columns import Spans, to_block
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
from finetune.store.seals import EMPTY, Sealer
from finetune.store.shelf import Claim, claim_store
from finetune.store.tier import Tier
from finetune.store.verdicts import Verdicts

__all__ = ["RowSpec", "Store", "StoreError", "StoreFullError"]

_AT_ONCE = 64 << 20
"""Bytes of rows that are compared with their seals at once."""
_GIB = 1 << 30


class Store:
    """The rows of one key, made by `Store.open`. Indices are numbers of samples, (B,).

    Other processes may have the same store open, each by an object of its own. One object serves
    one thread at a time, and none of the processes that are forked from its own.

    Args:
        meta: What it holds.
        claim: Its folder, which this process has open; None keeps rows in memory alone.
        memory_bytes: All rows are also kept in memory if they fit; else they are read through a
            map of their files.
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
        self._sealer = Sealer.of(
            meta.key,
            [column.unit.num_bytes for column in layout.columns],
            [column.spec.ragged for column in layout.columns],
        )
        self._book = Book(layout, claim.folder if claim else None)
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
        """Open the store of `key` below `folder`, with what rows it has, or make it.

        Args:
            folder: Where all stores are, see `cache_root`.
            key: Name of the store: stands for all that the rows depend on.
            specs: What is kept for each sample, by name of the output.
            num_rows: Number of samples.
            memory_gb: GiB of memory; see `Store`.
            disk_gb: GiB that all stores may take. Others go, the longest unused first, until
                this one fits. With 0 it is kept in memory and ends with the process.
            store_dtype: Floating point is stored as this; it comes back as it was given.
            facts: What the key was made of, told to people by `finetune cache`.
            evicts: Whether other stores go to make room for this one.

        Raises:
            StoreFullError: it fits neither the memory nor the disk.
            StoreError: an output cannot be stored, or the folder not be used.
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
        """Open a store that is claimed; the claim is given up if that fails. See `Store`."""
        try:
            store = cls(meta, claim, memory_bytes=memory_bytes, disk_bytes=disk_bytes)
            if claim.is_damaged:
                store.has(store.sealed())
                store._num_told = store.num_damaged
        except BaseException:
            claim.give_up()
            raise
        return store

    def has(self, indices: Tensor) -> Tensor:
        """Tell which rows are there and whole, (B,) bool.

        A row that this process sees for the first time is read, and compared with its seal: for
        all rows at once this takes as long as reading the store. `num_valid` only counts seals.
        """
        rows = self._rows(indices)
        known = self._book.is_known(rows)
        if not known.all():
            new = rows[~known & (self._book.seals(rows) != EMPTY)]
            self._examine(new)
            known = self._book.is_known(rows)
        return torch.from_numpy(known)

    def read(self, indices: Tensor, length: int | None = None) -> dict[str, Tensor]:
        """Return copies of rows, (B, ...) by name of the output.

        Ragged ones are padded with zeros to the longest of them, or to `length` tokens.

        Raises:
            KeyError: a row is not there; `has` tells which are. Those that were found whole stay
                readable, should another process give them up.
        """
        spans = self._known_spans(indices)  # may give up a tier
        return self._tier.read(spans, length)

    def read_flat(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return copies of rows by name of the output, ragged ones end to end, (T, ...).

        With them come the lengths of the ragged ones, (B,), or none where no output is ragged.

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
            fresh = np.flatnonzero(self._book.seals(rows) == EMPTY)
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
            self._book.record(spans, self._sealer.seals(spans.rows, spans.lengths, blocks))

    def discard(self) -> None:
        """Give up every row; the store stays open, and can be filled again.

        Room that ragged rows have taken on disk is free once nobody has the store open.

        Raises:
            StoreFullError: rows were in memory alone, and memory is full.
        """
        self._book.erase(np.arange(self.meta.layout.num_rows))
        if self._memory is not None and self._disk is None:
            self._memory.close()
            with self._may_lack_memory():
                self._memory = Tier.in_memory(self.meta.layout)

    def leave_memory(self) -> None:
        """Let go of the rows that are in memory, where they are on disk as well."""
        if self._disk is not None and self._memory is not None:
            self._memory.close()
            self._memory = None

    def sealed(self) -> Tensor:
        """Return the rows that bear a seal, in order. `has` tells whether they are whole."""
        return torch.from_numpy(self._book.sealed())

    def verdicts(self, network: str) -> Verdicts:
        """Return what trials of batches of `network`, a key of it, have shown."""
        return Verdicts(self._claim.folder / "verdicts" if self._claim else None, network)

    @property
    def memory_bytes(self) -> int:
        """Memory that its rows take when all are there; none if they are read from disk."""
        return max(self.meta.layout.size_bytes, self._memory.size_bytes) if self._memory else 0

    @property
    def num_valid(self) -> int:
        """Number of rows that bear a seal."""
        return len(self._book.sealed())

    @property
    def num_damaged(self) -> int:
        """Rows that were found damaged, and given up, since the store was opened."""
        return self._num_damaged

    def take_notes(self) -> list[str]:
        """Return what a user should know and was not told yet, a line each.

        That is damage, stores removed to make room, memory given up.
        """
        notes, self._notes = self._notes, []
        if count := self._num_damaged - self._num_told:
            rows = "1 damaged row is" if count == 1 else f"{count} damaged rows are"
            notes.append(f"store {self.meta.key}: {rows} recomputed")
        self._num_told = self._num_damaged
        return notes

    def close(self) -> None:
        """Close the files, and let others remove them. Rows stay on disk."""
        if self._claim is not None:
            self._book.close()
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
        if not (self._book.were_known(rows) or self.has(indices).all()):
            raise KeyError(f"store {self.meta.key} lacks rows of {indices}")
        return self._book.known_spans(rows)

    @property
    def _tier(self) -> Tier:
        """Where rows are read: in memory if they are there."""
        tier = self._memory or self._disk
        assert tier is not None
        return tier

    def _tiers(self) -> list[Tier]:
        return [tier for tier in (self._disk, self._memory) if tier is not None]

    def _examine(self, rows: Rows) -> None:
        """Compare rows with their seals: learn those that are whole, give up the others."""
        tier = self._tiers()[0]
        seals, spans = self._book.seals(rows), self._book.spans(rows)
        whole = np.ones(len(rows), np.bool_)
        if self.meta.layout.ragged:
            count = tier.ragged_whole
            # in this order no sum of damaged numbers can overflow
            whole = (spans.lengths >= 0) & (spans.lengths <= count) & (spans.starts >= 0)
            whole &= (spans.starts <= count - spans.lengths) | (spans.lengths == 0)
        for part in _portions(np.flatnonzero(whole), self._row_bytes(spans)):
            blocks = self._gathered(tier, spans.some(part))
            same = self._sealer.seals(rows[part], spans.lengths[part], blocks) == seals[part]
            whole[part] = same
            if self._memory is not None and not same.all():
                self._put_in_memory(spans.some(part[same]), tier.gather(spans.some(part[same])))
            else:
                self._put_in_memory(spans.some(part), blocks)
        self._book.learn(spans.some(whole), seals[whole])
        if len(damaged := rows[~whole]):
            self._book.erase(damaged)
            self._num_damaged += len(np.unique(damaged))

    def _gathered(self, tier: Tier, spans: Spans) -> list[Block]:
        """Return units of rows; where memory is full, the rows in memory make room for them."""
        if self._memory is not None:
            with self._may_lack_memory():
                return tier.gather(spans)
        return tier.gather(spans)

    def _put_in_memory(self, spans: Spans, blocks: Sequence[Block]) -> None:
        """Keep rows in memory as well, as long as its budget lasts.

        Raises:
            StoreFullError: it does not, and there is no disk.
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
        """Go on without the rows in memory if the block finds no more of it, where there is a disk.

        Raises:
            StoreFullError: there is none.
        """
        try:
            yield
        except MemoryError as error:
            if self._disk is None:
                raise StoreFullError(f"store {self.meta.key}: memory is full") from error
            self.leave_memory()
            self._notes.append(f"store {self.meta.key}: memory is full, rows are read from disk")

    def _free_spans(self, rows: Rows, lengths: Tensor | None) -> Spans:
        """Return where new rows go: ragged ones behind all that are there."""
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
