"""Metrics of pairs and triplets: correlations with scores, ranks of partners, triplets in order.

Letters: N samples of a split, D numbers of an embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import assert_never

import torch
from torch import Tensor

from finetune.config.metric_keys import PairMetric
from finetune.tasks.collecting import CollectingMetric
from finetune.tasks.conditions import Always, Spread

_AT_ONCE = 1024
"""Samples that are compared with all partners at once, which takes 4 N bytes for each."""


def metric_of_pairs(name: PairMetric) -> CollectingMetric:
    """Return a metric of `similarity`.

    `spearman` and `pearson` are fed with cosines and scores `(N,)`, `triplet_accuracy` with the
    cosines `(N,)` of a sample with its like and with the other; all others with embeddings of
    length 1, `(N, D)`, of the samples and of their partners.
    """
    match name:
        case "spearman":
            return CollectingMetric(spearman, Spread, higher_is_better=True)
        case "pearson":
            return CollectingMetric(pearson, Spread, higher_is_better=True)
        case "triplet_accuracy":
            return CollectingMetric(_share_in_order, Always, higher_is_better=True)
        case "mrr":
            return _of_ranks(1, _mean_reciprocal)
        case "recall@1" | "recall@3" | "recall@5" | "recall@10" | "recall@100":
            most = int(name.removeprefix("recall@"))
            return _of_ranks(most, partial(_share_within, most))
        case _:
            assert_never(name)


def _of_ranks(most: int, figure: Callable[[Tensor], Tensor]) -> CollectingMetric:
    """Return a metric of the ranks of partners, which needs more than `most` of them."""

    def of_embeddings(samples: Tensor, partners: Tensor) -> Tensor:
        if not (torch.isfinite(samples).all() and torch.isfinite(partners).all()):
            return torch.tensor(torch.nan)
        return figure(ranks(samples, partners))

    return CollectingMetric(of_embeddings, partial(MoreThan, most), higher_is_better=True)


class MoreThan:
    """The condition of a metric of ranks: more candidates than the best ranks that it counts."""

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0

    def add(self, target: Tensor) -> None:
        """Add the partners of a batch."""
        self._count += len(target)

    def fault(self) -> str | None:
        """Return that every rank would count; None if it is not so."""
        if self._count > self._most:
            return None
        return f"it needs more than {self._most} pairs, got {self._count}"


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of two rows of numbers `(N,)`; 0 if one of them is constant.

    r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2). NaN stays NaN.
    """
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return torch.tensor(torch.nan)
    if first.unique().numel() == 1 or second.unique().numel() == 1:
        # A constant predictor orders nothing. Of its deviations rounding errors would be left.
        return torch.tensor(0.0)
    x, y = ((one - one.mean()) for one in (first.double(), second.double()))
    # Scaled first: the squares of tiny deviations would be rounded to 0.
    x, y = x / x.abs().max(), y / y.abs().max()
    share: Tensor = (x @ y) / ((x @ x).sqrt() * (y @ y).sqrt())
    return share.clamp(-1, 1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of the ranks of two rows of numbers `(N,)`; see `pearson`."""
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return torch.tensor(torch.nan)
    return pearson(_mean_ranks(first), _mean_ranks(second))


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each number from 1, `(N,)` float64; equal ones share their mean rank."""
    # `unique` sorts: added up, the counts are the last rank of each value.
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    shared: Tensor = last - (counts.double() - 1) / 2
    return shared[place]


def ranks(samples: Tensor, partners: Tensor) -> Tensor:
    """Return the rank of each sample's own partner among all partners by cosine, `(N,)` from 1.

    Partners that are as near as the own one are counted before it, so that embeddings which are all
    alike find nothing.

    Args:
        samples: Embeddings of length 1, `(N, D)`.
        partners: Those of their partners, in the same order.
    """
    found = []
    for begin in range(0, len(samples), _AT_ONCE):
        cosines = samples[begin : begin + _AT_ONCE] @ partners.T
        # Row i of this part belongs to partner begin + i.
        own = cosines.diagonal(offset=begin)
        found.append((cosines >= own[:, None]).sum(1))
    return torch.cat(found)


def _mean_reciprocal(found: Tensor) -> Tensor:
    return found.double().reciprocal().mean()


def _share_within(most: int, found: Tensor) -> Tensor:
    return (found <= most).double().mean()


def _share_in_order(of_like: Tensor, of_other: Tensor) -> Tensor:
    """Return the share of triplets whose like is nearer; NaN if a cosine is."""
    if not (torch.isfinite(of_like).all() and torch.isfinite(of_other).all()):
        return torch.tensor(torch.nan)
    return (of_like > of_other).double().mean()
