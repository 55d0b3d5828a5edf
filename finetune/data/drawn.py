"""A few samples of each part, drawn by seed: enough to look at data, whatever its size."""

from dataclasses import replace

import torch

from finetune.data.opening import OpenedData
from finetune.data.parting import RawPart

MOST_PREPARED = 2000
"""Samples of a part that `plan` prepares: to decode an image takes 1 to 10 ms."""


def drawn(opened: OpenedData, most: int, seed: int) -> OpenedData:
    """Return the same data with at most so many samples a part, and a note if some are left out.

    Facts stay those of all samples, as their numbers and classes are. Data that has no part of
    more samples is returned as it is.

    Args:
        opened: The raw parts.
        most: Samples of a part.
        seed: Of the drawing.
    """
    parts = {"train": opened.train, "validation": opened.validation, "test": opened.test}
    sizes = {name: len(part.table) for name, part in parts.items() if part is not None}
    if not (large := {name: size for name, size in sizes.items() if size > most}):
        return opened
    few = {name: None if part is None else _drawn(part, most, seed) for name, part in parts.items()}
    shares = ", ".join(f"{most:,} of {size:,} {name}" for name, size in large.items())
    note = f"looked at here are {shares} samples, drawn by seed; training prepares all"
    facts = replace(opened.facts, notes=(*opened.facts.notes, note))
    train = few["train"] or opened.train
    return replace(opened, train=train, validation=few["validation"], test=few["test"], facts=facts)


def _drawn(part: RawPart, most: int, seed: int) -> RawPart:
    if len(part.table) <= most:
        return part
    order = torch.randperm(len(part.table), generator=torch.Generator().manual_seed(seed))
    return part.take(order[:most].sort().values)
