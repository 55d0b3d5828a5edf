"""Convert outputs to units of a file and back; ragged outputs have a unit per token.

Letters: B samples, T tokens of all of them, L tokens of the longest.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.store.layout import Block, Column, Rows, StoreError
from finetune.store.units import Units


class Spans(NamedTuple):
    """Positions of rows: the row number, or for ragged outputs a run of units from `starts` on."""

    rows: Rows
    """(B,)"""
    starts: Rows
    """First unit of each row in every ragged file, (B,)."""
    lengths: Rows
    """Number of units of each row in ragged files, (B,)."""

    def places(self, column: Column) -> Rows:
        """Return the indices of these rows' units, (B,), or (T,) if `column` is ragged."""
        if not column.spec.ragged:
            return self.rows
        before = np.cumsum(self.lengths) - self.lengths
        places: Rows = np.arange(self.lengths.sum())
        places += np.repeat(self.starts - before, self.lengths)
        return places

    def padded_places(self, length: int) -> Rows:
        """Return `length` unit indices for each row, (B, L); the last one is repeated as padding.

        Repeating it is cheap: it was read just before. The caller overwrites the padding.
        """
        last = np.maximum(self.lengths - 1, 0)
        places: Rows = self.starts[:, None] + np.minimum(np.arange(length), last[:, None])
        return places

    def end(self, column: Column) -> int:
        """Return the first unit behind these rows."""
        last = self.starts + self.lengths if column.spec.ragged else self.rows + 1
        return int(last.max(initial=0))

    def some(self, which: NDArray[np.bool_] | Rows) -> "Spans":
        """Return the spans of some of the rows."""
        return Spans(self.rows[which], self.starts[which], self.lengths[which])


def to_block(column: Column, value: Tensor, lengths: Rows) -> Block:
    """Return the units of an output: `value` is (B, ...), or (B, L, ...) where ragged.

    Raises:
        StoreError: a value is too large for the dtype that it is to be stored in.
    """
    expected = (column.spec.dtype, column.unit.shape)
    unit_axis = 2 if column.spec.ragged else 1
    actual = (str(value.dtype).removeprefix("torch."), tuple(value.shape[unit_axis:]))
    if actual != expected:
        raise ValueError(f"{column.name!r}: {actual}, not {expected}")
    value = value.detach().cpu()
    if column.spec.ragged:
        if len(lengths) and lengths.max() > value.shape[1]:
            raise ValueError(f"{column.name!r}: lengths go beyond {value.shape[1]}")
        value = value[torch.arange(value.shape[1]) < torch.from_numpy(lengths)[:, None]]
    stored = value.to(_dtype(column.stored)).contiguous()
    if column.stored != column.spec.dtype and bool((stored.isinf() & value.isfinite()).any()):
        raise StoreError(f"{column.name!r} has values too large for {column.stored}")
    return (stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored).numpy()


def read_padded(column: Column, units: Units, spans: Spans, length: int | None) -> Tensor:
    """Return a ragged output of rows, (B, L, ...), zeros behind the end of each."""
    longest = int(spans.lengths.max(initial=0))
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"{column.name!r}: {length} tokens are fewer than the {longest} stored")
    block = units.take(spans.padded_places(length).reshape(-1))
    padding = np.arange(length) >= spans.lengths[:, None]
    block[padding.reshape(-1)] = 0
    return to_tensor(column, block.reshape(*padding.shape, *block.shape[1:]))


def to_tensor(column: Column, block: Block) -> Tensor:
    """Return the tensor whose units are `block`, in as many axes. It shares their memory."""
    tensor = torch.from_numpy(block)
    if column.stored == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor if column.stored == column.spec.dtype else tensor.to(_dtype(column.spec.dtype))


@cache
def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
