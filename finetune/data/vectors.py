"""Columns of vectors of which some parts are one-hot: of those only positions are in memory.

Letters: N samples, B of a batch, D numbers of a vector, K categories.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from finetune.data.ragged import smallest
from finetune.data.table import Numbers

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class OneHot:
    """Vectors `(N, K)` with at most one 1.

    Args:
        positions: Place of the 1 in each vector, counted from 1, in the smallest type of whole
            numbers that holds it; 0 for a vector of zeros. `(N,)`
        count: K.
    """

    positions: Tensor
    count: int

    @classmethod
    def of(cls, positions: Tensor, count: int) -> "OneHot":
        """Return vectors whose positions are of any type of whole numbers."""
        return cls(smallest(positions), count)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the vectors at `rows` as float32, `(B, K)`."""
        # One number more, for position 0: it is cut off, which leaves zeros alone.
        found = torch.zeros(len(rows), self.count + 1)
        found.scatter_(1, self.positions[rows].long().unsqueeze(1), 1.0)
        return found[:, 1:]


@dataclass(frozen=True, slots=True)
class Vectors:
    """A column of vectors `(N, D)` in float32, whose parts stand side by side.

    Args:
        parts: Numbers `(N, ...)` in float32, and one-hot vectors.
    """

    parts: tuple[Tensor | OneHot, ...]

    def __len__(self) -> int:
        first = self.parts[0]
        return len(first.positions if isinstance(first, OneHot) else first)

    def __getitem__(self, index: int) -> Tensor:
        return self.gather(torch.tensor([index]))[0]

    @property
    def numbers(self) -> list[Numbers]:
        """The parts that are numbers."""
        return [Numbers(part) for part in self.parts if isinstance(part, Tensor)]

    def gather(self, rows: Tensor) -> Tensor:
        """Return the samples at `rows` as a new tensor `(B, D)`."""
        return _side_by_side(
            [part.gather(rows) if isinstance(part, OneHot) else part[rows] for part in self.parts]
        )

    def whole(self) -> Numbers:
        """Return all vectors as a column of numbers."""
        every = torch.arange(len(self))
        return Numbers(
            _side_by_side([p.gather(every) if isinstance(p, OneHot) else p for p in self.parts])
        )

    def fingerprint(self) -> bytes:
        """Return the hash that the same vectors have as a column of numbers."""
        shape = (len(self), self[0].shape[0] if len(self) else 0)
        # The same beginning as `Numbers.fingerprint` has, or the hashes would differ.
        digest = blake2b(f"{torch.float32}{shape}".encode(), digest_size=16)
        for portion in self._portions():
            digest.update(portion.contiguous().numpy().data)
        return digest.digest()

    def _portions(self) -> Iterator[Tensor]:
        """Yield some vectors after the others: all together may not fit into memory."""
        for rows in torch.arange(len(self)).split(_ROWS_AT_ONCE):
            yield self.gather(rows)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return numbers `(B, ...)` as vectors `(B, D)`."""
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
