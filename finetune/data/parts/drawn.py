"""Draw a few samples of each part by seed, to look at data of any size."""

from dataclasses import replace

import torch

from finetune.data.opening import OpenedData
from finetune.data.parts.parting import RawPart

MOST_PREPARED = 2000
"""Most samples of a part that `plan` prepares; to decode an image takes 1 to 10 ms."""


def drawn(opened: OpenedData, most: int, seed: int) -> OpenedData:
    """Return the data with at most `most` samples per part, and a note if some are left out.

    Facts, such as sizes and classes, stay those of all samples. Data without a larger part is
    returned unchanged.

    Args:
        opened: The raw parts.
        most: Most samples of a part.
        seed: Seed of the draw.
    """
    parts = {"train": opened.train, "validation": opened.validation, "test": opened.test}
    sizes = {name: len(part.table) for name, part in parts.items() if part is not None}
    if not (large := {name: size for name, size in sizes.items() if size > most}):
        return opened
    few = {name: None if part is None else _drawn(part, most, seed) for name, part in parts.items()}
    shares = ", ".join(f"{most:,} of {size:,} {name}" for name, size in large.items())
    note = f"looked at here are {shares} samples, drawn by seed; training prepares all"
    # Facts stay those of all samples: `plan` reports sizes and classes of the whole data.
    facts = replace(opened.facts, notes=(*opened.facts.notes, note))
    train = few["train"] or opened.train
    return replace(opened, train=train, validation=few["validation"], test=few["test"], facts=facts)


def _drawn(part: RawPart, most: int, seed: int) -> RawPart:
    """Return a part with `most` of its samples, drawn at random by seed, in the order they had."""
    if len(part.table) <= most:
        return part
    # By seed: two calls of `plan` must show the same.
    order = torch.randperm(len(part.table), generator=torch.Generator().manual_seed(seed))
    return part.take(order[:most].sort().values)
