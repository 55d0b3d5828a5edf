"""Rows of every kind whose right values are known; as a script, a process that fills a store.

`python known_rows.py FOLDER SEED` fills the store in an order of its own, for ever
anew until it is full, and prints a line when it starts to write.
"""

import sys
from pathlib import Path

import torch

from finetune.store.store import RowSpec, Store

NUM_ROWS = 300
SPECS = {
    "conv:0": RowSpec((3, 5), "float32"),
    "tokens": RowSpec((8, 6), "float32", ragged=True),
    "mask": RowSpec((), "bool"),
    "half": RowSpec((3,), "bfloat16"),
    "marks": RowSpec((8,), "int64", ragged=True),
}

RAGGED = [name for name, spec in SPECS.items() if spec.ragged]


def values_of(indices):
    """Return the values of rows, ragged ones with noise behind their end, and their lengths."""
    noise = torch.Generator().manual_seed(1)
    every = {
        "conv:0": torch.randn(NUM_ROWS, 3, 5, generator=noise),
        "tokens": torch.randn(NUM_ROWS, 8, 6, generator=noise),
        "mask": torch.rand(NUM_ROWS, generator=noise) < 0.5,
        "half": torch.randn(NUM_ROWS, 3, generator=noise).bfloat16(),
        "marks": torch.randint(1 << 40, (NUM_ROWS, 8), generator=noise),
    }
    lengths = torch.arange(NUM_ROWS) % 9
    return {name: value[indices] for name, value in every.items()}, lengths[indices]


def expected(indices, length=None):
    """Return what a store gives back for them."""
    values, lengths = values_of(indices)
    longest = max([0, *lengths.tolist()]) if length is None else length
    for name in RAGGED:
        for row, count in zip(values[name], lengths, strict=True):
            row[count:] = 0
        values[name] = values[name][:, :longest]
    return values


def fill(store, indices):
    values, lengths = values_of(indices)
    store.write(indices, values, lengths)


def assert_right(store, indices):
    """Check rows bit by bit."""
    rows, right = store.read(indices), expected(indices)
    assert rows.keys() == right.keys()
    for name, row in rows.items():
        assert row.dtype == right[name].dtype, name
        assert torch.equal(row, right[name]), name


def main():
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    store = Store.open(folder, "k", SPECS, NUM_ROWS, memory_gb=0, disk_gb=1)
    generator = torch.Generator().manual_seed(seed)
    print("writing", flush=True)
    while store.num_valid < NUM_ROWS:
        fill(store, torch.randperm(NUM_ROWS, generator=generator)[:3])
    assert bool(store.has(torch.arange(NUM_ROWS)).all())
    assert_right(store, torch.arange(NUM_ROWS))
    assert store.take_notes() == []
    store.close()


if __name__ == "__main__":
    main()
