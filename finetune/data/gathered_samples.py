"""Samples with finished columns: a batch is gathered from tensors by index.

Letters: N samples, B in a batch, L tokens.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from finetune.data.batches import (
    MASK,
    Batch,
    Extent,
    blank_column,
    fingerprint_of,
    spec_of,
)
from finetune.data.table import Numbers, Ragged
from finetune.models.declared import TensorSpec


class GatheredSamples:
    """A split for which all steps are done.

    Args:
        columns: The finished columns.
        target: Targets `(N, ...)`, or None.
        place: Names a sample for a message: its row and file.
        name: `train`, `validation` or `test`; empty for samples that are no split of a run.
    """

    # No random step is left, so every epoch sees the same samples.
    views = 1

    def __init__(
        self,
        columns: Mapping[str, Numbers | Ragged],
        target: Tensor | None,
        *,
        place: Callable[[int], str] | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.place = place
        self._columns = dict(columns)
        self._target = target
        self.specs: dict[str, TensorSpec] = {
            name: TensorSpec((column.longest,), "int64")
            if isinstance(column, Ragged)
            else spec_of(column.values[0])
            for name, column in columns.items()
        }
        ragged = self._ragged()
        self.longest = max((column.longest for column in ragged), default=None)
        # Columns of different lengths, or a mask beside them, would disagree on the length.
        self.is_even = len(ragged) + (self._plain_mask() is not None) <= 1
        self._widths, self._lengths = self._find_widths(ragged), self._find_lengths(ragged)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        return tuple(self.specs)

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        mask = self._columns.get(MASK)
        return isinstance(mask, Ragged) and mask.is_mask

    @property
    def has_shorter(self) -> bool:
        """Whether some samples have fewer tokens than the longest batch."""
        if self._widths is None or self._lengths is None:
            return False
        return bool(self._lengths.min() < self._widths.max())

    def extent(self, indices: Tensor) -> Extent | None:
        """Return the width of a batch and its shortest and longest sample; None without tokens."""
        if self._widths is None or self._lengths is None:
            return None
        shortest, longest = self._lengths[indices].aminmax()
        return Extent(int(self._widths[indices].max()), int(shortest), int(longest))

    def fetch(
        self,
        indices: Tensor | Sequence[int],
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Gather the samples at `indices` `(B,)`; see `Samples.fetch`."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        inputs = {
            name: self._gathered(name, column, rows, length, is_blank=name in blank)
            for name, column in self._columns.items()
        }
        return Batch(inputs, None if self._target is None else self._target[rows], rows)

    def fetches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Fetch one batch after another."""
        yield from (self.fetch(rows, epoch=epoch) for rows in batches)

    def close(self) -> None:
        """Do nothing: no process makes these batches."""

    def fingerprint(self) -> str:
        """Hash the contents of all columns, targets too."""
        return fingerprint_of(self._columns, self._target, "")

    def _gathered(
        self,
        name: str,
        column: Numbers | Ragged,
        rows: Tensor,
        length: int | None,
        *,
        is_blank: bool,
    ) -> Tensor:
        """Return the rows of a column, or zeros of the same shape if it is blank."""
        if isinstance(column, Numbers):
            return blank_column(self.specs[name], len(rows)) if is_blank else column.gather(rows)
        if is_blank:
            return torch.zeros(len(rows), length or column.width(rows), dtype=torch.int64)
        return column.gather(rows, length)

    def _find_widths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return the width of each sample in a batch of its own, `(N,)`; None without tokens."""
        if (mask := self._plain_mask()) is not None:
            return torch.full((len(self),), mask.shape[1])
        widths = [column.widths for column in ragged]
        # A batch is as wide as its widest column.
        return torch.stack(widths).amax(0) if widths else None

    def _find_lengths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return the number of tokens of each sample, `(N,)`; None without tokens."""
        if (mask := self._plain_mask()) is not None:
            return mask.ne(0).sum(1)
        lengths = [column.lengths for column in ragged]
        # A sample counts as short if any of its columns is padded.
        return torch.stack(lengths).amin(0) if lengths else None

    def _ragged(self) -> list[Ragged]:
        """Return one padded column for each set of lengths."""
        # All outputs of a tokenizer have the same lengths: one stands for them.
        ragged = [column for column in self._columns.values() if isinstance(column, Ragged)]
        return [
            column
            for number, column in enumerate(ragged)
            if not any(torch.equal(column.offsets, other.offsets) for other in ragged[:number])
        ]

    def _plain_mask(self) -> Tensor | None:
        """Return a mask `(N, L)` that was given as numbers, all samples of one width; else None."""
        mask = self._columns.get(MASK)
        if not isinstance(mask, Numbers) or mask.values.ndim != 2:
            return None
        return mask.values
