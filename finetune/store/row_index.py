"""The row index of a store: which rows are written, where, and which this process has verified.

A row checksum has eight bytes. Non-zero means written; the value verifies the content.

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
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune.store.layout import Block, Layout, Rows, Spans
from finetune.store.units import FileUnits

Checksums = NDArray[np.uint64]

EMPTY = np.uint64(0)
"""The checksum of a row that is not written."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class RowIndex:
    """Checksums and positions of rows, shared by all processes, and which this process verified.

    Args:
        layout: What the store holds.
        folder: Where its files are; None keeps it in files without names.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self._units = {
            name: FileUnits(folder and folder / name, unit, layout.num_rows * unit.num_bytes)
            for name, unit in layout.index_files().items()
        }
        # One more element at each end, always EMPTY: `take` with mode "clip" maps numbers out of
        # range to them.
        self._bordered: Checksums = np.zeros(layout.num_rows + 2, np.uint64)
        self._known = self._bordered[1:-1]
        self._known_places: NDArray[np.int64] = np.zeros(
            (layout.num_rows if layout.ragged else 0, 2), np.int64
        )

    def checksums(self, rows: Rows) -> Checksums:
        """Return the present checksums of rows; `EMPTY` where a row is not written."""
        return self._units["seals"].take(rows)

    def written(self, start: int = 0, stop: int | None = None) -> Rows:
        """Return the numbers of all rows from `start` to before `stop` that have a checksum."""
        stop = len(self._known) if stop is None else min(stop, len(self._known))
        return np.flatnonzero(self.checksums(np.arange(start, stop))) + start

    def spans(self, rows: Rows) -> Spans:
        """Return where rows lie according to the index file, which may be damaged."""
        if "index" not in self._units:
            return Spans(rows, rows, np.ones_like(rows))
        places = self._units["index"].take(rows)
        return Spans(rows, places[:, 0], places[:, 1])

    def is_known(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows this process has verified and whose checksum is still the same."""
        known = self._known[rows]
        # Where they differ, another process has erased or rewritten the row.
        same: NDArray[np.bool_] = (known != EMPTY) & (known == self.checksums(rows))
        return same

    def known_spans(self, rows: Rows) -> Spans | None:
        """Return where rows lie, as of the time when this process verified them.

        None if it has never verified one of them, or a number is beyond the rows. Lengths are left
        out where no output is ragged: this runs in every step.
        """
        if np.count_nonzero(self._bordered.take(rows + 1, mode="clip")) < len(rows):
            return None
        if not len(self._known_places):
            return Spans(rows, rows, rows[:0])
        # Not from the file: another process may have written the row anew, at another place.
        places = self._known_places[rows]
        return Spans(rows, places[:, 0], places[:, 1])

    def learn(self, spans: Spans, checksums: Checksums) -> None:
        """Remember that these rows were verified, with these positions and checksums."""
        if len(self._known_places):
            self._known_places[spans.rows] = np.stack([spans.starts, spans.lengths], axis=1)
        self._known[spans.rows] = checksums

    def record(self, spans: Spans, checksums: Checksums) -> None:
        """Mark rows as written: first their positions, then the checksums that make them valid."""
        # After a kill in between, the position has no checksum, so the row counts as not written.
        if "index" in self._units:
            places = np.stack([spans.starts, spans.lengths], axis=1)
            self._units["index"].put(spans.rows, places)
        self._units["seals"].put(spans.rows, checksums)
        self.learn(spans, checksums)

    def erase(self, rows: Rows) -> None:
        """Mark rows as not written."""
        self._units["seals"].put(rows, np.zeros(len(rows), np.uint64))
        self._known[rows] = EMPTY

    def close(self) -> None:
        """Close its files."""
        for units in self._units.values():
            units.close()


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
