"""Spread samples over parts where some must stay together, or have several labels each.

Letters: N samples, C labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.parts.splits import samples_of_groups
from finetune.errors import DataError

_KEY = ("data", "split")


@dataclass(slots=True)
class _Wish:
    """What a part still lacks. Falls as samples are assigned to it."""

    samples: float
    labels: Tensor
    """(C,)"""


def spread(
    groups: Tensor, labels: Tensor | None, shares: Mapping[str, float], seed: int
) -> dict[str, Tensor]:
    """Return the positions of each part's samples, drawn from the seed alone.

    Sizes come as near to the shares as groups allow. With labels, the rarest one is spread first,
    each time to the part that lacks it most: iterative stratification, Sechidis et al., "On the
    Stratification of Multi-Label Data" (2011), Algorithm 1, with groups in place of samples.

    Args:
        groups: A number for each sample; samples with the same number stay together, `(N,)`.
        labels: 1 where a sample has a label, `(N, C)`; None to look at sizes alone.
        shares: The share of each part; they add up to 1.
        seed: Seed of the draw.

    Returns:
        Positions in ascending order for every part.

    Raises:
        DataError: a part ends up empty.
    """
    if labels is None:
        # No label to be short of: then only the sizes of the parts decide.
        labels = torch.zeros(len(groups), 0)
    units = samples_of_groups(groups)
    weights = torch.stack([labels[unit].sum(0) for unit in units])
    wishes = {
        part: _Wish(share * len(groups), share * labels.sum(0)) for part, share in shares.items()
    }
    taken: dict[str, list[int]] = {part: [] for part in shares}
    for number, label in _in_turn(units, weights, seed):
        # Of parts in equal need `max` takes the first, so that the seed alone decides.
        part = max(wishes, key=lambda name: _need(wishes[name], label))
        wishes[part].samples -= len(units[number])
        wishes[part].labels -= weights[number]
        taken[part] += units[number]
    for part, rows in taken.items():
        if not rows:
            raise DataError(
                f"no sample is left for {part}: {len(units)} groups do not fill {len(shares)} "
                "parts",
                key=_KEY,
            )
    return {part: torch.tensor(sorted(rows)) for part, rows in taken.items()}


def note_on_sizes(parts: Mapping[str, Tensor], shares: Mapping[str, float]) -> list[str]:
    """Return a note for each part whose size is off its share by more than a hundredth of all."""
    total = sum(map(len, parts.values()))
    # One sample more or less is rounding, also where it is more than a hundredth.
    return [
        f"{part} has {len(parts[part]):,} of {total:,} samples, {len(parts[part]) / total:.1%}, "
        f"not {share:.1%}: those of a group stay together"
        for part, share in shares.items()
        if part in parts and abs(len(parts[part]) - share * total) > max(1, 0.01 * total)
    ]


def few_of_each(
    rows: Tensor, target: Tensor, classes: Sequence[str], most: int, seed: int
) -> tuple[Tensor, list[str]]:
    """Return `most` rows of each class, drawn at random, and notes on what is left out or lacking.

    All rows of a smaller class are taken.

    Args:
        rows: Positions of the training samples.
        target: Class of every sample of the source `(N,)`.
        classes: Names of the classes.
        most: The greatest number of rows of a class.
        seed: Seed of the draw.
    """
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    of_class = [order[target[order] == number][:most] for number in range(len(classes))]
    # Sorted, so that positions are in the order of the file as they are without `per_class`.
    kept = torch.cat(of_class).sort().values
    notes = [f"per_class: {len(rows) - len(kept):,} of {len(rows):,} training samples are left out"]
    short = [name for name, some in zip(classes, of_class, strict=True) if len(some) < most]
    if short:
        notes.append(
            f"per_class: {len(short)} of {len(classes)} classes have fewer than {most} training "
            f"samples, such as {short[0]!r}"
        )
    return kept, notes


def _in_turn(
    units: Sequence[Sequence[int]], weights: Tensor, seed: int
) -> list[tuple[int, int | None]]:
    """Return the units in the order in which they are assigned, each with the label that it is for.

    Units of the rarest label come first. Of one label the largest come first, since small ones
    still fit where there is little room; units of one size are in random order.
    """
    drawn = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    # The sort is stable: units of one size stay in the order of the draw.
    left = sorted(drawn, key=lambda number: -len(units[number]))
    turns: list[tuple[int, int | None]] = []
    counts = weights.sum(0)
    while left and bool((counts > 0).any()):
        label = int(torch.where(counts > 0, counts, torch.inf).argmin())
        having = [number for number in left if weights[number, label] > 0]
        turns += [(number, label) for number in having]
        # A unit is assigned once, for its rarest label: its other labels are no longer left over.
        counts = counts - weights[having].sum(0)
        gone = set(having)
        left = [number for number in left if number not in gone]
    return turns + [(number, None) for number in left]


def _need(wish: _Wish, label: int | None) -> tuple[float, float]:
    """Return how much a part lacks a label, and then how much it lacks samples."""
    return (0.0 if label is None else float(wish.labels[label]), wish.samples)
