"""What it costs that every step is checked, can be undone and can be stopped: with and without.

Trains the network of `configs/digits.yaml` with the checks and with them taken out, step by step in
turns in one process, so that noise of the machine falls on both.
Run: `python benchmarks/step_checks.py`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from finetune.config.loader import load_config
from finetune.train.guard import StepGuard
from finetune.train.loop import Trainer
from finetune.train.wire import build_trainer

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


class NoGuard(StepGuard):
    """Looks at nothing and remembers nothing."""

    def begin_step(self) -> None:
        """Do nothing."""

    def refuse_non_finite(self, step: int, loss: Tensor, optimizer: Optimizer) -> None:
        """Do nothing."""


def build(folder: Path, *, with_checks: bool) -> Trainer:
    """Build a run of digits, at its beginning."""
    trainer = build_trainer(load_config(CONFIG), folder)
    if not with_checks:
        guard = NoGuard(trainer.model, checks_gradients=False)
        trainer.stepper = replace(trainer.stepper, guard=guard)
    trainer._enter_phase()
    return trainer


def steps(trainer: Trainer) -> Iterator[float]:
    """Yield the CPU seconds of each step: the step alone, and what is checked after it."""
    for window in trainer._windows():
        began = time.process_time()
        trainer.train_step(window)
        trainer.evaluator.between_passes()
        yield time.process_time() - began


def _pair(one: Iterator[float], other: Iterator[float], *, swapped: bool) -> tuple[float, float]:
    if swapped:
        second = next(other)
        return next(one), second
    return next(one), next(other)


def main() -> None:
    """Measure, and print the median cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checked = steps(build(Path(folder, "checked"), with_checks=True))
        bare = steps(build(Path(folder, "bare"), with_checks=False))
        # In turns, as the second of a pair finds warmer caches.
        pairs = [_pair(checked, bare, swapped=bool(i % 2)) for i in range(args.steps)]
    pairs = pairs[len(pairs) // 10 :]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    costs = [
        statistics.median(with_ - without for with_, without in pairs[start::2]) for start in (0, 1)
    ]
    cost = statistics.mean(costs)
    result = {
        "steps": len(pairs),
        "ms_of_a_step": [round(1e3 * median, 4) for median in medians],
        "checks_us": round(1e6 * cost, 1),
        "share_of_a_step": round(cost / medians[1], 4),
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
