"""Columns of sequences of different lengths, and how a batch pads them.

Letters: N samples, B samples of a batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

_NUMBERS_AT_ONCE = 1 << 20
_TYPES = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sample of a ragged column: `values` `(T,)`, and how a batch pads it."""

    values: Tensor
    pad: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of sequences of different lengths, stored end to end.

    Args:
        values: All sequences `(sum T + 1,)`, followed by one number that belongs to none; whole
            numbers of the smallest type that holds all of them.
        offsets: Start of each sequence, and end of the last one, `(N + 1,)`.
        pad: Number that batches are padded with.
        length: Length that each batch is padded to; None pads to its longest sequence.
    """

    values: Tensor
    offsets: Tensor
    pad: int
    length: int | None

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], *, pad: int, length: int | None) -> "Ragged":
        """Return a column of these sequences."""
        flat = torch.tensor([number for sequence in sequences for number in sequence])
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        return cls.flat(flat, lengths, pad=pad, length=length)

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """Return a column of the sequences of several columns, one after another."""
        first = parts[0]
        values = torch.cat([part.values[:-1] for part in parts])
        lengths = torch.cat([part.lengths for part in parts])
        return cls.flat(values, lengths, pad=first.pad, length=first.length)

    @classmethod
    def flat(cls, values: Tensor, lengths: Tensor, *, pad: int, length: int | None) -> "Ragged":
        """Return a column of sequences that are end to end already: `(sum T,)` and `(N,)`."""
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        # The number behind the end gives `gather` a position to read for samples that are padded.
        return cls(smallest(values, pad), offsets, pad, length)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        start, stop = self.offsets[index], self.offsets[index + 1]
        return Tokens(_widened(self.values[start:stop]), self.pad, self.length)

    def take(self, rows: Tensor) -> "Ragged":
        """Return the sequences at `rows`."""
        lengths = self.lengths_of(rows)
        before = lengths.cumsum(0) - lengths
        places = torch.arange(int(lengths.sum()))
        places += (self.offsets[rows] - before).repeat_interleave(lengths)
        return Ragged.flat(self.values[places], lengths, pad=self.pad, length=self.length)

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Return the length of each sequence at `rows`, `(B,)`."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def has_lengths_of(self, other: object) -> bool:
        """Tell whether another column has sequences of the same lengths."""
        return isinstance(other, Ragged) and torch.equal(self.offsets, other.offsets)

    @property
    def whole(self) -> "Ragged":
        """This column: all its sequences are there."""
        return self

    @property
    def expected(self) -> int:
        """Padded length of a batch of all sequences."""
        return self.longest

    @property
    def widths(self) -> Tensor:
        """Padded length of each sequence alone, `(N,)`; a batch has that of its widest."""
        if self.length is not None:
            return torch.full((len(self),), self.length)
        return self.lengths.clamp_(min=1)

    @property
    def lengths(self) -> Tensor:
        """Length of each sequence, `(N,)`."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def is_mask(self) -> bool:
        """Whether the column marks padding: ones for tokens, padded with zeros."""
        return self.pad == 0 and bool((self.values[:-1] == 1).all())

    @property
    def longest(self) -> int:
        """Padded length of a batch that holds the longest sequence."""
        return int(self.widths.max())

    def width(self, rows: Tensor) -> int:
        """Return the length that the sequences at `rows` are padded to."""
        return self.length or max(int((self.offsets[rows + 1] - self.offsets[rows]).max()), 1)

    def gather(self, rows: Tensor, length: int | None = None) -> Tensor:
        """Return the sequences at `rows` padded to one length, `(B, T)`: theirs, or `length`."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        steps = torch.arange(length or self.length or max(int(lengths.max()), 1))
        # One gather for the whole batch, and then the mask: a loop over samples is several times
        # slower.
        positions = (starts.unsqueeze(1) + steps).clamp_(max=len(self.values) - 1)
        tokens = _widened(self.values[positions])
        return tokens.masked_fill_(steps >= lengths.unsqueeze(1), self.pad)

    def fingerprint(self) -> bytes:
        """Return a hash of contents, boundaries and padding."""
        digest = blake2b(f"{self.pad} {self.length}".encode(), digest_size=16)
        for some in self.values.split(_NUMBERS_AT_ONCE):
            # As int64: the hash does not depend on the type in which numbers are stored.
            digest.update(_widened(some).numpy().data)
        digest.update(self.offsets.numpy().data)
        return digest.digest()


def smallest(values: Tensor, *more: int) -> Tensor:
    """Return numbers `(T,)`, with `more` behind them, in the smallest type; floats as they are."""
    if len(values) == 0:
        return torch.tensor(more)
    if values.is_floating_point():
        return torch.cat([values, torch.tensor(more, dtype=values.dtype)])
    low, high = (int(bound) for bound in values.aminmax())
    low, high = min([low, *more]), max([high, *more])
    fitting = (t for t in _TYPES if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    dtype = next(fitting, torch.int64)
    return torch.cat([values.to(dtype), torch.tensor(more, dtype=dtype)])


def _widened(values: Tensor) -> Tensor:
    """Return whole numbers as int64, which networks take; floats as they are."""
    return values if values.is_floating_point() else values.long()
