"""How many samples a step takes and how long training lasts, by the data and the machine."""

import math
from dataclasses import dataclass

import torch

from finetune.process import available_memory_bytes, usable_cores
from finetune.starting.judged_columns import Judged
from finetune.starting.wishes import Choice, Wishes


@dataclass(frozen=True, slots=True)
class Lengths:
    """Batch size and epochs, and the parts of the data.

    Args:
        batch_size: Samples of a step.
        epochs: Passes over the training samples.
        split: Keys of `data.split`; None if the sources are parts already.
        choice: What is told about it.
    """

    batch_size: int
    epochs: int
    split: dict[str, object] | None
    choice: Choice


@dataclass(frozen=True, slots=True)
class TrainingPace:
    """How a kind of network is trained.

    Args:
        steps: Steps after which it has usually learnt what it can.
        most_epochs: Most passes over the data.
        least_epochs: Fewest passes over the data.
        most_batch: Most samples of a step.
    """

    steps: int
    most_epochs: int
    least_epochs: int = 3
    most_batch: int = 32


def machine() -> str:
    """Return what this machine has, in words."""
    cores = usable_cores()
    told = f"{cores} cores" if cores > 1 else "1 core"
    told += f", {available_memory_bytes() / 2**30:.0f} GiB free"
    if torch.cuda.is_available():
        return f"{told}, {torch.cuda.get_device_name()}"
    return f"{told}, no GPU"


def chosen_sizes(
    num_rows: int,
    pace: TrainingPace,
    wishes: Wishes,
    *,
    classes: Judged | None,
    has_parts: bool,
    has_copies: bool,
) -> Lengths:
    """Return batch size, epochs and split.

    Args:
        num_rows: Samples of the training source.
        pace: How the network is trained.
        wishes: What the user has said.
        classes: The column whose values are the classes; None without classes.
        has_parts: Whether the data is in parts already.
        has_copies: Whether samples occur twice, which stay in one part then.
    """
    split = None if has_parts else _split(num_rows, classes)
    if split is not None and has_copies:
        split["copies"] = "together"
    # Validation and test have the same share.
    train = num_rows if split is None else num_rows - 2 * round(num_rows * _share(num_rows))
    batch = wishes.batch_size or _batch(train, pace)
    steps = math.ceil(train / batch)
    epochs = wishes.epochs or min(
        max(round(pace.steps / steps), pace.least_epochs), pace.most_epochs
    )
    what = f"{epochs} epochs of {steps:,} steps, {batch} samples each"
    return Lengths(batch, epochs, split, Choice("sizes", what, f"on {machine()}"))


def _batch(train: int, pace: TrainingPace) -> int:
    """Return a batch size that gives an epoch some 20 steps, a power of 2."""
    wanted = 1 << max(2, round(math.log2(max(train / 20, 1))))
    most = pace.most_batch * (2 if torch.cuda.is_available() else 1)
    return min(max(wanted, min(8, train)), most)


def _share(num_rows: int) -> float:
    """Return the share of the samples for validation, and for the test."""
    # A tenth of few samples would be too few to tell two networks apart.
    return 0.15 if num_rows < 2000 else 0.1


def _split(num_rows: int, classes: Judged | None) -> dict[str, object]:
    """Return the keys of `data.split`."""
    share = _share(num_rows)
    split: dict[str, object] = {"validation": share, "test": share}
    # Each of the three parts gets some of each class, if there are enough of it, and room for all.
    if classes and classes.rarest >= 3 and round(num_rows * share) >= classes.distinct:
        split["stratify"] = True
    return split
