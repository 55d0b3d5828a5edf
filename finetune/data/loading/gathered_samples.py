"""Samples with finished columns: a batch is gathered from tensors by index.

Letters: N samples, B in a batch, L tokens.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

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
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.ragged import Ragged
from finetune.data.table import Numbers
from finetune.data.targets.token_targets import TokenTarget
from finetune.data.vectors import Vectors
from finetune.models.declared import TensorSpec

Finished = Numbers | Vectors | Ragged | LazyColumn
"""What batches are gathered from."""


class GatheredSamples:
    """A split for which all steps are done.

    Args:
        columns: The finished columns.
        target: The targets, or None.
        more: Further columns for the loss.
        place: Names a sample for a message: its row and file.
        name: `train`, `validation` or `test`; empty for samples that are no split of a run.
    """

    # No random step is left, so every epoch sees the same samples.
    views = 1
    # All are of one size, so a batch pads none.
    image_sizes: frozenset[tuple[int, int]] | None = frozenset()

    def __init__(
        self,
        columns: Mapping[str, Finished],
        target: Finished | TokenTarget | None,
        *,
        more: Mapping[str, Finished | TokenTarget] | None = None,
        place: Callable[[int], str] | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.place = place
        self._columns = dict(columns)
        self._target, self._more = target, dict(more or {})
        self.specs: dict[str, TensorSpec] = {
            name: TensorSpec((column.expected,), "int64")
            if isinstance(column, Ragged | LazyColumn)
            else spec_of(column[0])
            for name, column in columns.items()
        }
        self._tokens = self._of_tokens()
        # Columns of different lengths, or a mask beside them, would disagree on the length.
        self.is_even = len(self._tokens) + (self._plain_mask() is not None) <= 1

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        return tuple(self.specs)

    @cached_property
    def padded(self) -> frozenset[str]:
        """Names of the columns that a batch pads."""
        found = self._columns.items()
        return frozenset(name for name, one in found if isinstance(one, Ragged | LazyColumn))

    @cached_property
    def longest(self) -> int | None:
        """Tokens of the longest sample; None where no column is padded."""
        return max((column.whole.longest for column in self._tokens), default=None)

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        mask = self._columns.get(MASK)
        return isinstance(mask, Ragged | LazyColumn) and mask.whole.is_mask

    @cached_property
    def has_shorter(self) -> bool:
        """Whether some samples have fewer tokens than the longest batch."""
        if not self._columns:
            return False  # all columns are made at every fetch
        # Asked for of all samples at once, so that their tokens are made together.
        whole = None if self.longest is None else [column.whole for column in self._tokens]
        extent = self._extent(torch.arange(len(self)), whole or self._tokens)
        return extent is not None and extent.shortest < extent.width

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how many tokens samples have in a batch: padded, least, most; None without any."""
        return self._extent(indices, self._tokens)

    def lengths(self, indices: Tensor) -> Tensor | None:
        """Return how many tokens each sample has `(B,)`; None without any."""
        if (mask := self._plain_mask()) is not None:
            return mask[indices].ne(0).sum(1)
        if not self._tokens:
            return None
        return torch.stack([column.lengths_of(indices) for column in self._tokens]).amin(0)

    def _extent(self, indices: Tensor, tokens: Sequence[Ragged | LazyColumn]) -> Extent | None:
        """Return how many tokens samples have, by the mask if it is a column, else by `tokens`."""
        if (mask := self._plain_mask()) is not None:
            shortest, longest = mask[indices].ne(0).sum(1).aminmax()
            return Extent(mask.shape[1], int(shortest), int(longest))
        if not tokens:
            return None
        lengths = [column.lengths_of(indices) for column in tokens]
        if len(tokens) == 1:  # the usual case: asked for several times a step, so it must be quick
            least, most = (int(each) for each in lengths[0].aminmax())
            return Extent(tokens[0].length or max(most, 1), least, most)
        # A batch is as wide as its widest column, and a sample counts as short if any is padded.
        pairs = zip(tokens, lengths, strict=True)
        width = max(column.length or max(int(each.max()), 1) for column, each in pairs)
        shortest, longest = torch.stack(lengths).amin(0).aminmax()
        return Extent(width, int(shortest), int(longest))

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
        target = self._target_of(rows, length)
        more = {name: column.gather(rows) for name, column in self._more.items()}
        return Batch(inputs, target, rows, columns=more)

    def _target_of(self, rows: Tensor, length: int | None) -> Tensor | None:
        """Return the targets of some samples; those of tokens are as long as the inputs."""
        if isinstance(self._target, TokenTarget):
            return self._target.gather(rows, length)
        return None if self._target is None else self._target.gather(rows)

    def fetches(
        self, batches: Sequence[Tensor], epoch: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Fetch one batch after another."""
        yield from (self.fetch(rows, epoch=epoch).to(device) for rows in batches)

    def close(self) -> None:
        """Do nothing: no process makes these batches."""

    is_identified = True
    skipped: Mapping[int, str] = MappingProxyType({})
    first_row = 0

    def identify(self, tell: Callable[[str], None]) -> None:
        """Do nothing: no column is a file."""

    def fingerprint(self) -> str:
        """Hash the contents of all columns, targets too."""
        more = [(name, column.fingerprint().hex()) for name, column in self._more.items()]
        return fingerprint_of(self._columns, self._target, repr(more) if more else "")

    def _gathered(
        self,
        name: str,
        column: Numbers | Vectors | Ragged | LazyColumn,
        rows: Tensor,
        length: int | None,
        *,
        is_blank: bool,
    ) -> Tensor:
        """Return the rows of a column, or zeros of the same shape if it is blank."""
        if isinstance(column, Numbers | Vectors):
            return blank_column(self.specs[name], len(rows)) if is_blank else column.gather(rows)
        if is_blank:
            return torch.zeros(len(rows), length or column.width(rows), dtype=torch.int64)
        return column.gather(rows, length)

    def _of_tokens(self) -> list[Ragged | LazyColumn]:
        """Return one padded column for each set of lengths."""
        # All outputs of a tokenizer have the same lengths: one stands for them.
        found: list[Ragged | LazyColumn] = []
        for column in self._columns.values():
            if isinstance(column, Numbers | Vectors):
                continue
            if not any(column.has_lengths_of(other) for other in found):
                found.append(column)
        return found

    def _plain_mask(self) -> Tensor | None:
        """Return a mask `(N, L)` that was given as numbers, all samples of one width; else None."""
        mask = self._columns.get(MASK)
        if not isinstance(mask, Numbers) or mask.values.ndim != 2:
            return None
        return mask.values
