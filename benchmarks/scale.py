"""Compute what a run on very many samples takes: disk, bandwidth, memory, network, seconds.

Constants of this package are measured here, in seconds of the processor; those of machines are
given. docs/scale.md has the formulas in words.

Run: `python benchmarks/scale.py --samples 1e9 --nodes 8`.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.store.store import RowSpec, Store

_TABLE_BYTES = 60
"""Of each sample in the memory of each process: hashes, places, the target (docs/limits.md)."""
_ORDER_BYTES = 8
"""Of each sample in the memory of each process: its place in the order of an epoch."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Constants of this package."""

    over_bytes: float
    """Bytes that a row of a store takes beside its values."""
    read_s: float
    """Processor seconds to read a gigabyte of rows that are in memory."""
    order_s: float
    """Processor seconds to draw the order of a million samples."""


def measured(values: int, num_rows: int = 4000) -> Measured:
    """Fill a store with rows of float32 values and read it in shuffled batches."""
    with tempfile.TemporaryDirectory() as folder:
        spec = RowSpec((values,), "float32")
        store = Store.open(Path(folder), "scale", {"x": spec}, num_rows, memory_gb=4, disk_gb=100)
        for indices in torch.arange(num_rows).split(500):
            store.write(indices, {"x": torch.randn(len(indices), values)})
        read_s = 0.0
        for indices in (*torch.randperm(num_rows).split(256),) * 2:
            began = time.process_time()
            store.read(indices)
            read_s += time.process_time() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        store.close()
    began = time.process_time()
    torch.randperm(4_000_000)
    order_s = (time.process_time() - began) / 4
    payload = 4 * values * num_rows
    return Measured((size - payload) / num_rows, read_s / (2 * payload / 1e9), order_s)


def forward_flops(width: int, blocks: int, tokens: int) -> float:
    """Return the operations of a forward pass of a vision transformer, two for each product.

    Each token takes `12 w²` products in a block (4 w² in the attention's layers, 8 w² in the two
    of the MLP) and `2 T w` in the attention itself.
    """
    return 2.0 * blocks * tokens * (12 * width**2 + 2 * tokens * width)


def main() -> None:
    """Print constants and figures."""
    take = argparse.ArgumentParser(description=__doc__)
    take.add_argument("--samples", type=float, default=1e9)
    take.add_argument("--nodes", type=int, default=8)
    take.add_argument("--gpus", type=int, default=8, help="on each node")
    take.add_argument("--window", type=int, default=8192, help="samples of a step")
    take.add_argument("--trained", type=float, default=1024 * 1000 + 1000, help="parameters")
    take.add_argument("--tensors", type=int, default=2, help="that they are in")
    take.add_argument("--outputs", type=int, default=1000, help="numbers for a sample")
    take.add_argument("--disk", type=float, default=5, help="GB/s that a node reads")
    take.add_argument("--tflops", type=float, default=300, help="that a GPU reaches")
    take.add_argument("--width", type=int, default=1024)
    take.add_argument("--blocks", type=int, default=24)
    take.add_argument("--tokens", type=int, default=197)
    given = take.parse_args()
    found = measured(given.width)
    ranks, samples = given.nodes * given.gpus, given.samples
    lines = {
        "measured: bytes of a row beside its values": f"{found.over_bytes:.1f}",
        "measured: CPU seconds to read 1 GB of rows": f"{found.read_s:.2f}",
        "measured: CPU seconds to order a million samples": f"{found.order_s:.3f}",
    }
    for name, numbers in {"one token": 1, "all tokens": given.tokens}.items():
        for kind, size in {"float32": 4, "bfloat16": 2}.items():
            row = numbers * given.width * size + found.over_bytes
            a_step = row * given.window / given.nodes
            lines |= {
                f"store, {name}, {kind}": f"{row * samples / 1e12:,.1f} TB",
                f"  read by a node in a step, {name}, {kind}": f"{a_step / 1e6:,.1f} MB, "
                f"{a_step / given.disk / 1e9 * 1e3:,.1f} ms at {given.disk:g} GB/s",
            }
    flops = forward_flops(given.width, given.blocks, given.tokens)
    prefix_s = flops * given.window / ranks / given.tflops / 1e12
    head_s = 6 * given.trained * given.window / ranks / given.tflops / 1e12
    # Gradients, a number for each tensor and four more, and the five that are agreed on before.
    sent = 4 * (given.trained + given.tensors + 4) + 8 * 5
    ring = 2 * (ranks - 1) / ranks * sent
    in_memory = (_TABLE_BYTES + _ORDER_BYTES) * samples * given.gpus
    hits = [1 - (1 - 1 / given.nodes) ** epoch for epoch in range(4)]
    lines |= {
        "prefix, operations for a sample": f"{flops / 1e9:,.1f} GFLOP",
        "prefix, first epoch, a step": f"{prefix_s * 1e3:,.1f} ms",
        "prefix, first epoch": f"{prefix_s * samples / given.window / 3600:,.1f} h",
        "head, forward and backward, a step": f"{head_s * 1e6:,.1f} us",
        "network, given by a rank in a step": f"{sent / 1e6:,.2f} MB",
        "network, sent by a rank in a step (ring)": f"{ring / 1e6:,.2f} MB",
        "network, received by a rank for 1e6 evaluated samples": f"{given.outputs / 250:,.1f} GB",
        "memory of a process for its table": f"{_TABLE_BYTES * samples / 1e9:,.0f} GB",
        "memory of a process for its order": f"{_ORDER_BYTES * samples / 1e9:,.0f} GB",
        "memory of a node for both": f"{in_memory / 1e9:,.0f} GB",
        "CPU seconds to order an epoch": f"{found.order_s * samples / 1e6:,.0f}",
        "rows found by epoch 1, 2, 3, 4, a store for each node": ", ".join(
            f"{share:.0%}" for share in hits
        ),
    }
    for name, value in lines.items():
        print(f"{name:58} {value}")


if __name__ == "__main__":
    main()
