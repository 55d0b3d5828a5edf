"""What our loop costs over the same loop written by hand in plain torch, nothing frozen.

Both train the network of `configs/digits.yaml` on the same batches in the same process, turn by
turn, so that noise of the machine falls on both. Run: `python benchmarks/plain_loop.py`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from finetune.config.loader import load_config
from finetune.data.loader import sample_order, seed_for
from finetune.optim.rates import Stretch
from finetune.train.loop import Trainer
from finetune.train.setup import build_trainer

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def build(folder: Path, epochs: int) -> Trainer:
    """Build a run of digits that neither evaluates nor saves before its end."""
    overrides = [
        f"train.epochs={epochs}",
        "data.split.validation=0",
        "data.split.test=0",
        f"train.checkpoint.every.epochs={epochs}",
    ]
    return build_trainer(load_config(CONFIG, overrides=overrides), folder)


def by_hand(trainer: Trainer, epochs: int) -> None:
    """Train the model of a freshly built trainer as a careful person would."""
    model, samples = trainer.model, trainer.splits.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    model.train()
    step = 0
    for epoch in range(epochs):
        for indices in sample_order(len(samples), 0, epoch).split(32):
            batch = samples.fetch(indices)
            torch.manual_seed(seed_for("step", 0, step))
            for group in optimizer.param_groups:
                group["lr"] = trainer.rates.at(
                    step, Stretch(0, 0, trainer.course.total_steps, False)
                )[0]
            optimizer.zero_grad()
            assert batch.target is not None
            F.cross_entropy(model(**batch.inputs), batch.target).backward()
            optimizer.step()
            step += 1


def measure(epochs: int) -> tuple[float, float, bool]:
    """Return CPU seconds of our loop and of the one by hand, and whether weights end equal."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = build(Path(folder, "ours"), epochs), build(Path(folder, "theirs"), epochs)
        began = time.process_time()
        ours.fit()
        between = time.process_time()
        by_hand(theirs, epochs)
        ended = time.process_time()
        other = theirs.model.state_dict()
        equal = all(torch.equal(t, other[name]) for name, t in ours.model.state_dict().items())
    return between - began, ended - between, equal


def main() -> None:
    """Measure several rounds and print the median ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    measure(1)
    rounds = [measure(args.epochs) for _ in range(args.rounds)]
    ratio = statistics.median(ours / theirs for ours, theirs, _ in rounds)
    result = {
        "ratio_of_cpu_time": round(ratio, 3),
        "weights_bit_equal": all(equal for _, _, equal in rounds),
        "rounds": [[round(ours, 3), round(theirs, 3)] for ours, theirs, _ in rounds],
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
