"""A store: rows that are computed once per sample and read many times.

Each output has a file, read through a memory map. A row counts as written once it has a checksum,
which is written after its bytes (`row_index.py`). Each process compares a row with its checksum
before it uses the row for the first time. So a process or machine may stop at any moment without a
repair afterwards, and a flipped bit is detected when it is read.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from finetune.store.directory import Claim, claim_store
from finetune.store.layout import (
    Labels,
    Layout,
    Meta,
    Rows,
    RowSpec,
    Spans,
    StoreError,
    rows_file,
)
from finetune.store.row_index import EMPTY, Checksummer, RowIndex
from finetune.store.units import FileUnits, OutputFile, locked

__all__ = ["RowSpec", "Store", "StoreError"]

_AT_ONCE = 64 << 20
"""Bytes of rows that are verified in one pass."""
_GIB = 1 << 30


class Store:
    """The rows of one key, made by `Store.open`. Indices are numbers of samples, (B,).

    Several processes may open the same store, each with its own object. An object is not
    thread-safe, and must not be used in a forked process.

    Args:
        meta: What it holds.
        claim: Its folder, locked by this process; None keeps rows in files without names, which
            are gone when this object is.
        limit_bytes: How large the files may grow.
    """

    def __init__(self, meta: Meta, claim: Claim | None, *, limit_bytes: float) -> None:
        layout, folder = meta.layout, claim.folder if claim else None
        self.meta = meta
        self._claim, self._limit_bytes = claim, limit_bytes
        self._notes = list(claim.notes) if claim else []
        self.num_damaged = self._num_told = 0
        """Number of rows that were found damaged since the store was opened."""
        self._checksummer = Checksummer.of(
            meta.key,
            [column.unit.num_bytes for column in layout.columns],
            [column.spec.ragged for column in layout.columns],
        )
        self._index = RowIndex(layout, folder)
        names, sizes = [rows_file(number) for number in range(len(layout.columns))], layout.files()
        self._outputs = [
            OutputFile(column, FileUnits(folder and folder / name, column.unit, sizes[name]))
            for name, column in zip(names, layout.columns, strict=True)
        ]
        self._ragged = [one.units for one in self._outputs if one.column.spec.ragged]

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
            memory_gb: GiB that the rows may take in memory if no disk takes them; such rows end
                with the process. 0 raises instead.
            disk_gb: GiB that all stores together may take on disk. Least recently used stores are
                removed until this one fits. 0 uses no disk.
            store_dtype: Floating-point values are stored in this dtype and read in their own.
            facts: A few inputs of the key, shown by `finetune cache`.
            evicts: Whether other stores may be removed to make room.

        Raises:
            StoreError: it fits neither on disk nor into memory, an output cannot be stored, or the
                folder cannot be used.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        layout = Layout.of(specs, num_rows, store_dtype)
        meta = Meta(key, torch.__version__, layout, dict(facts or {}), created)
        try:
            if disk_gb <= 0:
                raise StoreError("outgrows its memory, and may not use the disk")
            claim = claim_store(folder, meta, disk_gb * _GIB, evicts=evicts)
            return cls.of(meta, claim, limit_bytes=disk_gb * _GIB)
        except StoreError as error:
            # A cache that is lost at the end still saves the later epochs of this run.
            if layout.size_bytes > memory_gb * _GIB:
                raise
            store = cls(meta, None, limit_bytes=memory_gb * _GIB)
            if disk_gb > 0:
                store._notes.append(f"store {key}: kept in memory only: {error.in_one_line}")
            return store

    @classmethod
    def of(cls, meta: Meta, claim: Claim, *, limit_bytes: float) -> Self:
        """Open a store whose folder is locked; release the lock if that fails. See `Store`."""
        try:
            store = cls(meta, claim, limit_bytes=limit_bytes)
            # A file was too short: verify all rows now, so that the user gets one message.
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
        # Each process verifies a row once: checksums at every read would take as long as the
        # reading itself.
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
        spans = self._known_spans(indices)
        return {one.column.name: one.read(spans, length) for one in self._outputs}

    def read_flat(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return copies of rows by name of the output, ragged ones concatenated (T, ...).

        The second value holds the lengths of ragged rows (B,); it is empty if no output is ragged.

        Raises:
            KeyError: a row is not written; `has` tells which are.
        """
        spans = self._known_spans(indices)
        rows = {one.column.name: one.to_tensor(one.gather(spans)) for one in self._outputs}
        return rows, torch.from_numpy(spans.lengths)

    def write(
        self, indices: Tensor, values: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> None:
        """Write rows; those that are written already are left as they are.

        Args:
            indices: Numbers of the samples, (B,).
            values: The rows by name of the output, (B, ...); ragged ones (B, L, ...), padded behind
                their end.
            lengths: Tokens of each sample, (B,), needed where an output is ragged.

        Raises:
            StoreError: the budget or the disk is full, a value is too large for `store_dtype`, or
                the disk fails. Rows written before are unchanged.
            ValueError: values are not those of as many samples, or not of their shape and dtype.
        """
        rows = self._rows(indices)
        given = values if lengths is None else {**values, "lengths": lengths}
        for name, value in given.items():
            if len(value) != len(rows):
                raise ValueError(f"{name!r} has {len(value)} samples, not {len(rows)}")
        # Where rows are appended, locked until their checksums are written: no other process may
        # take the same units meanwhile. One lock for all files: a row begins at the same unit in
        # each of them.
        with locked(self._outputs[0].units) if self._ragged else nullcontext():
            # Rows that another process has written are kept: both computed the same bits.
            fresh = np.flatnonzero(self._index.checksums(rows) == EMPTY)
            if not len(fresh):
                return
            which = torch.from_numpy(fresh)
            spans = self._free_spans(rows[fresh], None if lengths is None else lengths[which])
            blocks = [
                one.to_block(values[one.column.name].detach().cpu()[which], spans.lengths)
                for one in self._outputs
            ]
            for output, block in zip(self._outputs, blocks, strict=True):
                output.put(spans, block)
            # Checksums last: from now on the rows count as written, also after a kill.
            self._index.record(
                spans, self._checksummer.checksums(spans.rows, spans.lengths, blocks)
            )

    def discard(self) -> None:
        """Mark every row as not written; the store stays open, and can be filled again.

        Room that ragged rows have taken on disk is free once nobody has the store open.
        """
        self._index.erase(np.arange(self.meta.layout.num_rows))
        # On disk another process may read them; nobody else has files without a name.
        for units in () if self._claim else self._ragged:
            units.empty()

    def written(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the numbers of written rows from `start` to before `stop`, ascending.

        `has` tells whether they are undamaged.
        """
        return torch.from_numpy(self._index.written(start, stop))

    def column(self, name: str, indices: Tensor) -> Tensor:
        """Return one output of rows, (B, ...), that must not be ragged.

        Nothing is verified: `has` tells which of these rows are undamaged.
        """
        output = next(one for one in self._outputs if one.column.name == name)
        return output.to_tensor(output.units.take(self._rows(indices)))

    @property
    def verdicts(self) -> Path | None:
        """File beside the rows for results of trials with them; None where rows are in memory."""
        return self._claim.folder / "verdicts" if self._claim else None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that all rows will take; 0 if they are on disk."""
        return 0 if self._claim else max(self.meta.layout.size_bytes, self._size_bytes())

    @property
    def num_valid(self) -> int:
        """Number of written rows."""
        return len(self._index.written())

    def take_notes(self) -> list[str]:
        """Return and clear the messages for the user, one line each.

        They tell of damage, and of stores removed to make room.
        """
        notes, self._notes = self._notes, []
        if count := self.num_damaged - self._num_told:
            rows = "1 damaged row is" if count == 1 else f"{count} damaged rows are"
            notes.append(f"store {self.meta.key}: {rows} recomputed")
        self._num_told = self.num_damaged
        return notes

    def close(self) -> None:
        """Close the files and release the lock. Rows stay on disk."""
        self._index.close()
        for output in self._outputs:
            output.units.close()
        if self._claim is not None:
            self._claim.give_up()
        self._claim = None

    def _rows(self, indices: Tensor) -> Rows:
        rows = _numbers(indices)
        num_rows = self.meta.layout.num_rows
        # Read as unsigned, a negative number is too large too.
        if len(rows) and rows.view(np.uint64).max() >= num_rows:
            raise IndexError(f"store {self.meta.key} has {num_rows} rows, not all of {indices}")
        return rows

    def _known_spans(self, indices: Tensor) -> Spans:
        rows = _numbers(indices)
        spans = self._index.known_spans(rows)
        if spans is None and self.has(indices).all():
            spans = self._index.known_spans(rows)
        if spans is None:
            raise KeyError(f"store {self.meta.key} lacks rows of {indices}")
        return spans

    def _examine(self, rows: Rows) -> None:
        """Verify rows: remember the undamaged ones, mark the others as not written."""
        checksums, spans = self._index.checksums(rows), self._index.spans(rows)
        # Positions come from a file that may be damaged: they must lie inside the rows.
        whole = np.ones(len(rows), np.bool_)
        if self.meta.layout.ragged:
            count = min(map(len, self._ragged))
            # In this order no sum overflows, whatever the damaged numbers are.
            whole = (spans.lengths >= 0) & (spans.lengths <= count) & (spans.starts >= 0)
            whole &= (spans.starts <= count - spans.lengths) | (spans.lengths == 0)
        good = np.flatnonzero(whole)
        # In parts, since a store may be larger than memory.
        at_once = max(1, _AT_ONCE // max(1, self._largest(spans.some(good))))
        for start in range(0, len(good), at_once):
            part = good[start : start + at_once]
            blocks = [output.gather(spans.some(part)) for output in self._outputs]
            found = self._checksummer.checksums(rows[part], spans.lengths[part], blocks)
            whole[part] = found == checksums[part]
        self._index.learn(spans.some(whole), checksums[whole])
        if len(damaged := rows[~whole]):
            self._index.erase(damaged)
            self.num_damaged += len(np.unique(damaged))

    def _free_spans(self, rows: Rows, lengths: Tensor | None) -> Spans:
        """Return positions for new rows: ragged ones are appended."""
        if not self.meta.layout.ragged:
            return Spans(rows, rows, np.ones_like(rows))
        if lengths is None:
            raise ValueError("ragged rows need their lengths")
        counts = lengths.detach().cpu().numpy().astype(np.int64)
        # Behind all units that any process has appended. The lock for appending is held.
        start = max(units.end for units in self._ragged)
        spans = Spans(rows, start + np.cumsum(counts) - counts, counts)
        if self._size_bytes(spans) > self._limit_bytes:
            where, hint = ("disk", "disk_gb is its budget") if self._claim else ("memory", None)
            raise StoreError(f"store {self.meta.key} outgrows its {where}", hint=hint)
        return spans

    def _size_bytes(self, more: Spans | None = None) -> int:
        """Return the bytes of all outputs up to the last written unit, with `more` rows."""
        return sum(
            one.column.unit.num_bytes * max(one.units.end, more.end(one.column) if more else 0)
            for one in self._outputs
        )

    def _largest(self, spans: Spans) -> int:
        """Return the bytes of a row as long as the longest of these."""
        longest = int(spans.lengths.max(initial=0))
        columns = self.meta.layout.columns
        return sum(c.unit.num_bytes * (longest if c.spec.ragged else 1) for c in columns)


def _numbers(indices: Tensor) -> Rows:
    numbers: Rows = indices.numpy(force=True).astype(np.int64, casting="same_kind", copy=False)
    return numbers
