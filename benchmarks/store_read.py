"""What reading the store costs beside a plain numpy gather, and whether it stays in its bounds.

Three questions, each answered in one run on the machine at hand:

1. ratio: reading shuffled batches over a gather of the same rows from a plain `numpy.memmap`.
2. level: seconds per sample from a thousand to a hundred thousand samples.
3. bounded: memory of its own while a store is filled and read.

Run: `python benchmarks/store_read.py`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.store.directory import entries
from finetune.store.store import RowSpec, Store

BATCH = 32


def filled(folder: Path, spec: RowSpec, num_rows: int) -> Store:
    """Make a store of one output and fill it with noise, shuffled as training meets samples."""
    store = Store.open(folder, "bench", {"x": spec}, num_rows, memory_gb=0, disk_gb=1e3)
    generator = torch.Generator().manual_seed(0)
    for indices in torch.randperm(num_rows, generator=generator).split(BATCH):
        values = torch.randn(len(indices), *spec.shape, generator=generator)
        lengths = torch.randint(spec.shape[0] // 2, spec.shape[0] + 1, (len(indices),))
        store.write(indices, {"x": values}, lengths if spec.ragged else None)
    return store


def batches(num_rows: int, most: int) -> list[Tensor]:
    """Return at most so many batches of an epoch's order."""
    return list(torch.randperm(num_rows).split(BATCH))[:most]


def seconds(read: Callable[[Tensor], object], order: list[Tensor]) -> float:
    """Return how long it takes to read all batches of an order."""
    began = time.perf_counter()
    for indices in order:
        read(indices)
    return time.perf_counter() - began


def plain(folder: Path, spec: RowSpec, num_rows: int) -> Callable[[Tensor], object]:
    """Return a gather by hand from a file of the same rows.

    Ragged rows are gathered as a careful person would: into zeros, a slice for each sample.
    """
    if not spec.ragged:
        rows = np.memmap(
            folder / "bench" / "rows-0", np.float32, "r", shape=(num_rows, *spec.shape)
        )
        return lambda indices: torch.from_numpy(rows[indices.numpy()])
    tokens = np.memmap(folder / "bench" / "rows-0", np.float32, "r").reshape(-1, *spec.shape[1:])
    places = np.fromfile(folder / "bench" / "index", np.int64).reshape(-1, 2)

    def gather(indices: Tensor) -> Tensor:
        spans = places[indices.numpy()]
        batch = np.zeros((len(indices), spans[:, 1].max(), *spec.shape[1:]), np.float32)
        for row, (start, length) in zip(batch, spans, strict=True):
            row[:length] = tokens[start : start + length]
        return torch.from_numpy(batch)

    return gather


def ratio(spec: RowSpec, num_rows: int, rounds: int) -> dict[str, float | str]:
    """Compare reading with a plain gather, turn by turn; first reads are timed apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled(folder, spec, num_rows).close()
        specs = {"x": spec}
        store = Store.open(folder, "bench", specs, num_rows, memory_gb=0, disk_gb=1e3)
        by_hand = plain(folder, spec, num_rows)
        every = list(torch.randperm(num_rows).split(BATCH))
        seconds(by_hand, every)
        first = seconds(by_hand, every) / seconds(store.read, every)
        speeds = []
        for _ in range(rounds):
            order = batches(num_rows, 200)
            theirs, ours = seconds(by_hand, order), seconds(store.read, order)
            speeds.append((theirs / ours, ours / len(order) / BATCH))
        store.close()
    return {
        "rows": f"{num_rows} x {spec.shape}{' ragged' if spec.ragged else ''}",
        "speed_to_plain_gather": round(statistics.median(s for s, _ in speeds), 2),
        "speed_of_first_read": round(first, 2),
        "us_per_sample": round(statistics.median(s for _, s in speeds) * 1e6, 2),
    }


def level(rounds: int) -> Iterator[dict[str, float]]:
    """Yield the time per sample for growing stores, of reading alone.

    Rows that lie further apart take longer to reach by any way: the plain gather tells how much.
    """
    for num_rows in (1_000, 10_000, 100_000):
        figures = ratio(RowSpec((384,), "float32"), num_rows, rounds)
        told = ("us_per_sample", "speed_to_plain_gather")
        yield {"samples": num_rows} | {name: float(figures[name]) for name in told}


def bounded(memory_mb: int) -> dict[str, float]:
    """Fill and read a store ten times the budget in a process of its own; return its peak."""
    command = [sys.executable, __file__, "--peak-of", str(memory_mb)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def own_mib() -> float:
    """Return the memory that this process holds of its own.

    Pages of mapped files are left out: the system takes those back whenever it needs room.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def peak_of(memory_mb: int) -> dict[str, float]:
    """Fill and read a store ten times the budget, twice over; return how far memory rose."""
    spec = RowSpec((64, 384), "float32")
    num_rows = 10 * (memory_mb << 20) // (64 * 384 * 4)
    with tempfile.TemporaryDirectory() as name:
        warm = filled(Path(name, "small"), spec, 512)
        warm.read(torch.arange(BATCH))
        before = most = own_mib()
        store = filled(Path(name), spec, num_rows)
        for indices in batches(num_rows, num_rows) * 2:
            store.read(indices)
            most = max(most, own_mib())
        order = batches(num_rows, num_rows)
        by_hand = plain(Path(name), spec, num_rows)
        speed = seconds(by_hand, order) / seconds(store.read, order)
        store.close()
        size = sum(entry.size_bytes for entry in entries(Path(name)))
    return {
        "budget_mib": memory_mb,
        "store_mib": round(size / (1 << 20), 1),
        "own_memory_rose_by_mib": round(most - before, 1),
        "speed_to_plain_gather": round(speed, 2),
    }


def main() -> None:
    """Measure all three and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-mb", type=int, default=64, help="budget of the bounded store")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of is not None:
        print(json.dumps(peak_of(args.peak_of)))
        return
    cases = [
        (RowSpec((384,), "float32"), 20_000),
        (RowSpec((128, 7, 7), "float32"), 8_000),
        (RowSpec((197, 768), "float32"), 1_000),
        (RowSpec((128, 384), "float32", ragged=True), 2_000),
    ]
    result = {
        "ratio": [ratio(*case, args.rounds) for case in cases],
        "level": list(level(args.rounds)),
        "bounded": bounded(args.memory_mb),
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
