"""Split one source into training, validation and test samples of exact sizes.

Letters: N samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.config.data import SplitConfig
from finetune.data.targets.labels import remedy_for_rare
from finetune.errors import DataError

_KEY = ("data", "split")


class _Units(NamedTuple):
    """Units of samples that must stay in one part: a single one, or all its copies.

    They are in order of their first samples.
    """

    of_sample: Tensor
    """Unit of each sample, (N,)."""
    sizes: Tensor
    """Number of samples of each unit."""
    strata: Tensor
    """Stratum of each unit: that of its first sample."""


def first_copies(hashes: Tensor) -> Tensor:
    """Return for each sample the position of the first sample with exactly equal inputs, `(N,)`.

    Args:
        hashes: Hashes of the inputs, `(N, 16)`.
    """
    # Sorted as pairs of numbers, which takes a third of the time of a dict of bytes.
    low, high = hashes.contiguous().numpy().view(np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    first = np.empty(len(order), np.int64)
    # The sort is stable: the first of equal hashes has the lowest position.
    first[order] = order[begins][np.cumsum(begins) - 1]
    return torch.from_numpy(first)


def samples_of_groups(groups: Tensor) -> list[list[int]]:
    """Return the positions of each group's samples, in order of the groups' first samples.

    Args:
        groups: A number for each sample, which samples of a group share, `(N,)`.
    """
    found: dict[int, list[int]] = {}
    for sample, group in enumerate(groups.tolist()):
        found.setdefault(group, []).append(sample)
    return list(found.values())


def split_samples(
    config: SplitConfig,
    seed: int,
    groups: Tensor,
    *,
    strata: Tensor | None = None,
    names: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Return the positions of each part's samples, drawn at random from the seed alone.

    Sizes are the shares of N, rounded. They are met exactly unless groups of copies prevent it;
    with strata, each part has samples of every stratum.

    Args:
        config: The shares.
        seed: Seed of the draw.
        groups: A number for each sample; samples with the same number stay together, `(N,)`.
        strata: Class of each sample `(N,)`, if each class should keep its share in each part.
        names: Names of the classes, for messages.

    Returns:
        Positions in ascending order for `train`, and for `validation` and `test` if they have a
        share.

    Raises:
        DataError: a part would be empty, or a class has fewer samples than there are parts.
    """
    units = _units(groups, strata)
    sizes = _sizes(len(groups), config)
    weights = _weights(units, max(len(names), 1))
    if strata is not None:
        # A class that a part lacks would have no metric there.
        _refuse_small_strata(weights, names, len(sizes) + 1)
    part_of = _filled(units, _quotas(weights, sizes), seed)[units.of_sample]
    parts = ["train", *sizes]
    ordered = [part for part in ("train", "validation", "test") if part in parts]
    return {part: (part_of == parts.index(part)).nonzero().squeeze(1) for part in ordered}


def _filled(units: _Units, quotas: dict[str, list[int]], seed: int) -> Tensor:
    """Return the part of each unit: 0 for training, then as in `quotas`, which falls."""
    count = len(units.sizes)
    # A generator of its own, so that the split depends on nothing that was drawn before.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    left = list(quotas.values())
    chosen = [0] * count
    # Test is filled first, then validation; what is left trains.
    drawn = zip(units.sizes[order].tolist(), units.strata[order].tolist(), strict=True)
    for position, (size, stratum) in enumerate(drawn):
        for part, quota in enumerate(left, start=1):
            if size <= quota[stratum]:
                quota[stratum] -= size
                chosen[position] = part
                break
    found = torch.empty(count, dtype=torch.int64)
    found[order] = torch.tensor(chosen)
    return found


def _units(groups: Tensor, strata: Tensor | None) -> _Units:
    """Return the groups of samples that must stay together, in order of their first sample."""
    _, first, of_sample, sizes = np.unique(
        groups.numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    of_first = np.zeros(len(order), np.int64) if strata is None else strata.numpy()[first[order]]
    return _Units(*map(torch.from_numpy, (rank[of_sample], sizes[order], of_first)))


def _sizes(num_samples: int, config: SplitConfig) -> dict[str, int]:
    """Return the number of samples of each part except training."""
    shares = {"test": config.test, "validation": config.validation}
    sizes = {part: round(num_samples * share) for part, share in shares.items() if share > 0}
    for part, size in sizes.items():
        if size == 0:
            raise DataError(f"{shares[part]} of {num_samples} samples is none", key=(*_KEY, part))
    # Rounding may take the last sample of a tiny data set.
    if sum(sizes.values()) >= num_samples:
        raise DataError(f"leaves none of {num_samples} samples to train on", key=_KEY)
    return sizes


def _weights(units: _Units, num_strata: int) -> list[int]:
    """Return the number of samples in each stratum."""
    weights = torch.zeros(num_strata, dtype=torch.int64)
    weights.index_add_(0, units.strata, units.sizes)
    return weights.tolist()


def _refuse_small_strata(weights: Sequence[int], names: Sequence[str], num_parts: int) -> None:
    """Raise if a class has fewer samples than there are parts."""
    for name, weight in zip(names, weights, strict=True):
        if weight < num_parts:
            raise DataError(
                f"class {name!r} has {weight} sample{'s' if weight > 1 else ''}, too few for "
                f"{num_parts} parts",
                # Leaving out `stratify` is no remedy: some part would still lack the class.
                hint=remedy_for_rare(name, weight, names),
                key=(*_KEY, "stratify"),
            )


def _quotas(weights: Sequence[int], sizes: dict[str, int]) -> dict[str, list[int]]:
    """Return how many samples of each stratum each part takes; one of each is left for training."""
    left = list(weights)
    quotas: dict[str, list[int]] = {}
    for number, (part, size) in enumerate(sizes.items(), start=1):
        still_needed = len(sizes) + 1 - number
        # Each part that is still to come needs a sample of every stratum.
        most = [weight - still_needed for weight in left] if len(weights) > 1 else left
        least = [1] * len(weights)
        if not sum(least) <= size <= sum(most):
            raise DataError(
                f"{size} samples cannot hold some of each of {len(weights)} classes",
                hint=f"a larger share for {part}, or leave stratify out",
                key=(*_KEY, part),
            )
        shares = [weight * size / sum(weights) for weight in weights]
        quotas[part] = _apportion(shares, size, least, most)
        left = [weight - quota for weight, quota in zip(left, quotas[part], strict=True)]
    return quotas


def _apportion(
    shares: Sequence[float], total: int, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Return `shares` rounded to whole numbers with sum `total`, largest remainders rounded up."""
    places = range(len(shares))
    # Floors first; what is missing then goes to the largest remainders.
    counts = [min(max(int(shares[i]), least[i]), most[i]) for i in places]
    while sum(counts) < total:
        counts[
            max((i for i in places if counts[i] < most[i]), key=lambda i: shares[i] - counts[i])
        ] += 1
    while sum(counts) > total:
        counts[
            min((i for i in places if counts[i] > least[i]), key=lambda i: shares[i] - counts[i])
        ] -= 1
    return counts
