"""Row checksums: eight bytes per row. Non-zero means written; the value verifies the content.

A checksum is a multilinear hash modulo 2^64. With the bytes of a row as 32-bit words `w`, for
unit `u` and word `i` in it, and with fixed odd 64-bit numbers `k` and `p`:

    checksum(row) = sum_u p[u] sum_i k[i] w[u, i]  +  mix(row, length)

A single flipped bit always changes it, since odd numbers have inverses; any other change is missed
with a probability of about 2^-32 or less (Lemire and Kaser, "Strongly universal string hashing is
fast", arXiv 1202.4961, section 2). It detects accidental damage, not an attacker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune.store.layout import Block, Rows

Checksums = NDArray[np.uint64]

EMPTY = np.uint64(0)
"""The checksum of a row that is not written."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Checksummer:
    """Computes the row checksums of one store; they differ between stores, as the key goes in."""

    keys: tuple[Checksums, ...]
    """For each output, an odd number for each word of a unit."""
    ragged: tuple[bool, ...]
    """For each output, whether a row has as many units as its length says, or one."""

    @classmethod
    def of(cls, key: str, unit_bytes: Sequence[int], ragged: Sequence[bool]) -> Self:
        """Derive the numbers `k` and `p` from `key`, for outputs with units of these sizes."""
        seed = np.frombuffer(blake2b(key.encode(), digest_size=8).digest(), np.uint64)
        counts = np.cumsum([0, *(-(-size // 4) for size in unit_bytes)])
        # Different numbers for every store, so that rows of another store match no checksum.
        drawn = _mixed(np.arange(counts[-1], dtype=np.uint64) + seed) | np.uint64(1)
        return cls(tuple(np.split(drawn, counts[1:-1])), tuple(ragged))

    def checksums(self, rows: Rows, lengths: Rows, units: Sequence[Block]) -> Checksums:
        """Return the checksum of each row, never `EMPTY`.

        Args:
            rows: Numbers of the rows, (B,).
            lengths: Units of each row in ragged outputs, (B,).
            units: What is stored of each output, (B, ...), or (sum of lengths, ...) where it is
                ragged.
        """
        total = _mixed(rows.astype(np.uint64) * _GOLDEN ^ _mixed(lengths.astype(np.uint64)))
        for keys, ragged, block in zip(self.keys, self.ragged, units, strict=True):
            hashes = np.einsum("bi,i->b", _words(block), keys, dtype=np.uint64, casting="safe")
            total += _folded(hashes, lengths) if ragged else hashes
        total[total == EMPTY] = 1  # zero stands for a row that is not written
        return total


def _folded(hashes: Checksums, lengths: Rows) -> Checksums:
    """Sum the hashes of each row's units, each weighted by its position in the row."""
    ends = np.cumsum(lengths)
    place = np.arange(len(hashes)) - np.repeat(ends - lengths, lengths)
    weighted = hashes * (_mixed(place.astype(np.uint64)) | np.uint64(1))
    # Differences of running sums are exact, since all sums are modulo 2^64.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)])
    folded: Checksums = sums[ends] - sums[ends - lengths]
    return folded


def _words(block: Block) -> NDArray[np.uint32]:
    """Return the bytes of each unit as 32-bit words (P, words), padded with zeros."""
    units = block.reshape(len(block), math.prod(block.shape[1:])).view(np.uint8)
    spare = -units.shape[1] % 4
    return (np.pad(units, ((0, 0), (0, spare))) if spare else units).view(np.uint32)


def _mixed(values: Checksums) -> Checksums:
    """Mix the bits of each number (finaliser of splitmix64)."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
