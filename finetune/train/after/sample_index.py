"""Find the stored row of a sample by its digest.

Of each row 16 bytes are in memory: half its digest, and where it is. The rest is read from the
store when a sample asks for it.

Letters: B samples of a batch, N stored rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.activations.batch_shapes import SAMPLE
from finetune.store.store import Store

MOST_ROWS = 8 << 20
"""Rows that are known at most: they take 128 MiB, and about 320 MiB while they are sorted."""
_AT_ONCE = 1 << 16
"""Rows whose digests are read in one piece."""

Numbers = np.ndarray[Any, Any]
"""An array of int64."""


class Found(NamedTuple):
    """Places of the stored rows of B samples; each array is (B,)."""

    stores: Numbers
    """Number of the store."""
    rows: Numbers
    """Number of the row in it."""
    origins: Numbers
    """Number of the batch shape in which the row was computed."""


class SampleIndex:
    """The rows of several stores, found by the digest of their sample.

    Args:
        stores: The stores, each of which has digests. Rows of the first ones count first.
        tell: Receives a line if there are more rows than `MOST_ROWS`.
    """

    def __init__(self, stores: Sequence[Store], tell: Callable[[str], None]) -> None:
        self._stores = stores
        sizes = [store.meta.layout.num_rows for store in stores]
        self._firsts = np.cumsum([0, *sizes])[:-1]
        """Row 0 of each store, in one count over the rows of all stores."""
        keys, places = self._first_halves(tell)
        # Stable: of equal digests the row of the first store stays in front, and is found.
        order = keys.argsort(kind="stable")
        self._keys, self._places = keys[order], places[order]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it takes."""
        return int(self._keys.nbytes + self._places.nbytes)

    def find(self, digests: Tensor) -> Found | None:
        """Return where the rows of samples are, by their digests (B, 2); None if one has none."""
        wanted = digests.numpy()
        if not len(self):
            return None
        at = np.searchsorted(self._keys, wanted[:, 0]).clip(max=len(self) - 1)
        if not (self._keys[at] == wanted[:, 0]).all():
            return None
        places = self._places[at]
        stores = np.searchsorted(self._firsts, places, side="right") - 1
        rows = places - self._firsts[stores]
        labels = self._labels(stores, rows)
        # Half a digest may be that of another sample, too: the whole one decides.
        if not (labels[:, :2] == wanted).all():
            return None
        return Found(stores, rows, labels[:, 2])

    def _labels(self, stores: Numbers, rows: Numbers) -> Numbers:
        """Return digest and origin of rows as the stores have them, (B, 3)."""
        labels = np.zeros((len(rows), 3), np.int64)
        for number in np.unique(stores).tolist():
            which = stores == number
            labels[which] = _read(self._stores[number], rows[which])
        return labels

    def _first_halves(self, tell: Callable[[str], None]) -> tuple[Numbers, Numbers]:
        """Return half the digest of each row that has one, and its number over all stores, (N,)."""
        keys, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        room = MOST_ROWS
        for half, numbers in self._pieces():
            keys.append(half[:room])
            places.append(numbers[:room])
            room -= len(half)
            if room < 0:
                tell(
                    f"activation cache: has more than {MOST_ROWS:,} rows of this network; the "
                    "frozen layers run for samples of the others"
                )
                break
        return np.concatenate(keys), np.concatenate(places)

    def _pieces(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Yield what `_first_halves` returns, piece by piece."""
        for first, store in zip(self._firsts.tolist(), self._stores, strict=True):
            for start in range(0, store.meta.layout.num_rows, _AT_ONCE):
                rows = store.written(start, start + _AT_ONCE).numpy()
                labels = _read(store, rows)
                # Zeros are for samples whose digest was not taken.
                is_taken = labels[:, :2].any(1)
                yield labels[is_taken, 0], rows[is_taken] + first


def _read(store: Store, rows: Numbers) -> Numbers:
    """Return digest and origin of some rows of a store, (B, 3)."""
    labels: Numbers = store.column(SAMPLE, torch.from_numpy(rows)).numpy()
    return labels
