"""What our loop costs over the same loop written by hand in plain torch, nothing frozen.

Both train the network of `configs/digits.yaml` on the same batches in one process, step by step in
turns, so that noise of the machine falls on both, and both end with the same bits. The network is
a small one: what a step of the loop costs besides the network shows more here than anywhere.

Run: `python benchmarks/plain_loop.py`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn import functional as F

from finetune.config.loader import load_config
from finetune.data.batches import sample_order, seed_for
from finetune.train.loop import Trainer
from finetune.train.wire import build_trainer

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def build(folder: Path, epochs: int) -> Trainer:
    """Build a run of digits that neither evaluates nor saves before its end."""
    overrides = [
        f"train.epochs={epochs}",
        "data.split.validation=0",
        "data.split.test=0",
        f"train.checkpoint.every.epochs={epochs + 1}",
    ]
    return build_trainer(load_config(CONFIG, overrides=overrides), folder)


def ours(trainer: Trainer) -> Iterator[None]:
    """Train as `fit` does within its phase, a step for each value that is asked for."""
    trainer._enter_phase()
    for window in trainer._windows():
        stats = trainer.train_step(window)
        trainer._after_step(stats)
        yield


def by_hand(trainer: Trainer, epochs: int) -> Iterator[None]:
    """Train the model of a freshly built trainer as a careful person would."""
    model, samples = trainer.model, trainer.splits.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    timeline = trainer.timeline
    total, peaks = timeline.total_steps, timeline.phase.rates
    model.train()
    step = 0
    for epoch in range(epochs):
        for indices in sample_order(len(samples), 0, epoch).split(32):
            batch = samples.fetch(indices)
            torch.manual_seed(seed_for("step", 0, step))
            for group in optimizer.param_groups:
                group["lr"] = timeline.rates.at(
                    step, peaks, (0, total), total, epochs=timeline.epochs
                )[0]
            optimizer.zero_grad()
            assert batch.target is not None
            F.cross_entropy(model(**batch.inputs), batch.target).backward()
            optimizer.step()
            step += 1
            yield


def seconds(steps: Iterator[None]) -> float:
    """Return the CPU seconds of the next step."""
    began = time.process_time()
    next(steps)
    return time.process_time() - began


def compared(one: Iterator[None], other: Iterator[None], count: int) -> tuple[float, float]:
    """Take `count` steps of both in turns; return the median extra cost of `one`, in seconds.

    The second of a pair finds warmer caches, so both are the second equally often. Returned with
    it is the median step of `other`.
    """
    pairs = []
    for number in range(count):
        if number % 2:
            second = seconds(other)
            pairs.append((seconds(one), second))
        else:
            pairs.append((seconds(one), seconds(other)))
    settled = pairs[count // 10 :]
    extra = [statistics.median(a - b for a, b in settled[start::2]) for start in (0, 1)]
    return statistics.mean(extra), statistics.median(b for _, b in settled)


def main() -> None:
    """Measure several rounds and print them and their median as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, is_equal = [], True
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            here = build(Path(folder, "ours"), args.epochs)
            stack.enter_context(here.reporter.running())
            stack.callback(here.cache.close)
            there = build(Path(folder, "theirs"), args.epochs)
            steps = here.timeline.total_steps
            rounds.append(compared(ours(here), by_hand(there, args.epochs), steps))
            other = there.model.state_dict()
            is_equal &= all(torch.equal(t, other[n]) for n, t in here.model.state_dict().items())
    extra = statistics.median(extra for extra, _ in rounds)
    step = statistics.median(step for _, step in rounds)
    result = {
        "steps": steps,
        "ms_of_a_step_by_hand": round(1e3 * step, 3),
        "ours_costs_more_by_us": round(1e6 * extra, 1),
        "share_of_a_step": round(extra / step, 4),
        "weights_bit_equal": is_equal,
        "shares_of_rounds": [round(extra / step, 4) for extra, step in rounds],
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
