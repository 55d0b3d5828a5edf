"""Which training samples an epoch draws, and in which order: a pure function of seed and epoch.

Letters: N training samples, P of them that are drawn from, D draws of an epoch, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.config.data import SampleWeights
from finetune.config.messages import shown
from finetune.config.task_list_keys import AnyTask as Task
from finetune.data.batches import sample_order, seed_for
from finetune.data.parts.parting import RawPart
from finetune.errors import DataError, named

_KEY = ("data", "balance")


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The draws of every epoch of a run.

    Args:
        count: Samples that an epoch draws, D.
        pool: Positions of the samples that are drawn from, `(P,)`; None for all of them.
        classes: The class of each sample of the pool `(P,)`, each drawn equally often; None to
            draw every sample once.
        weights: How often each sample of the pool is drawn in comparison `(P,)`, all above 0; None
            to draw every sample equally often.
    """

    count: int
    pool: Tensor | None = None
    classes: Tensor | None = None
    weights: Tensor | None = None

    @property
    def num_drawn(self) -> int:
        """P, the number of samples that epochs draw from."""
        chosen = next(
            (one for one in (self.pool, self.classes, self.weights) if one is not None), None
        )
        return self.count if chosen is None else len(chosen)

    def of(self, seed: int, epoch: int) -> Tensor:
        """Return the positions that an epoch draws, in order, `(D,)`.

        They depend only on the arguments; the global random state is neither used nor changed.
        """
        if self.classes is None and self.weights is None:
            order = sample_order(self.count, seed, epoch)
            return order if self.pool is None else self.pool[order]
        draw = torch.Generator().manual_seed(seed_for("order", seed, epoch))
        if self.classes is not None:
            drawn = _equally_often(self.classes, draw)
        else:
            assert self.weights is not None
            drawn = _by_weight(self.weights, self.count, draw)
        # Copies of a sample lie side by side in both draws, and in the first one whole classes.
        drawn = drawn[torch.randperm(len(drawn), generator=draw)]
        return drawn if self.pool is None else self.pool[drawn]


def _equally_often(classes: Tensor, draw: torch.Generator) -> Tensor:
    """Return positions with as many of each class as the largest has, each as equally as can be."""
    found = [(classes == number).nonzero().squeeze(1) for number in classes.unique().tolist()]
    most = max(map(len, found))
    drawn = []
    for rows in found:
        whole, rest = divmod(most, len(rows))
        # What does not go into whole rounds is another choice in every epoch.
        few = rows[torch.randperm(len(rows), generator=draw)[:rest]]
        drawn += [rows.repeat(whole), few]
    return torch.cat(drawn)


def _by_weight(weights: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Return `count` positions, each drawn as often as its weight says, rounded up or down.

    Systematic sampling: equal steps from a random start through the weights, laid end to end in
    random order. Independent draws have the same mean, and would leave out a third of all samples
    where the weights are equal.
    """
    order = torch.randperm(len(weights), generator=draw)
    # In doubles: the sum of a million weights in float32 loses the small ones.
    ends = weights[order].double().cumsum(0)
    start = torch.rand((), generator=draw, dtype=torch.float64)
    steps = (torch.arange(count) + start) * (ends[-1] / count)
    # Rounding may put the last step at the very end.
    return order[torch.searchsorted(ends, steps, right=True).clamp_(max=len(order) - 1)]


def epoch_order(
    part: RawPart,
    balance: str | SampleWeights,
    limit: float | None,
    *,
    task: Task,
    classes: Sequence[str] | None,
    seed: int,
) -> tuple[EpochOrder, list[str]]:
    """Return the draws of a run's epochs, and lines on what the config changes about them.

    Args:
        part: The training samples.
        balance: `data.balance`.
        limit: `train.limit`.
        task: Decides whether samples have a class.
        classes: Names of the classes.
        seed: The run's seed, by which a limited number of samples is chosen.

    Raises:
        DataError: the balance does not suit the task or the samples.
    """
    size = len(part.table)
    pool, notes = _limited(part, limit, task, seed)
    here = torch.arange(size) if pool is None else pool
    if balance == "oversample":
        labels = _labels(part, task, classes)[here]
        count = int(labels.bincount().max()) * len(labels.unique())
        notes += _on_classes(labels, classes or (), count)
        return EpochOrder(count, pool, classes=labels), notes
    if isinstance(balance, SampleWeights):
        weights = _weights(part, balance.weights)[here]
        drawn = weights > 0
        if not bool(drawn.any()):
            raise DataError(f"column {balance.weights!r} has no weight above 0", key=_KEY)
        notes += _on_weights(weights, balance.weights)
        return EpochOrder(len(here), here[drawn], weights=weights[drawn]), notes
    return EpochOrder(len(here), pool), notes


def _limited(
    part: RawPart, limit: float | None, task: Task, seed: int
) -> tuple[Tensor | None, list[str]]:
    """Return the positions that `train.limit` leaves in ascending order, and a line on them.

    A smaller limit leaves a part of what a larger one does, and classes keep their shares.
    """
    size = len(part.table)
    if limit is None:
        return None, []
    wanted = max(1, round(limit * size)) if limit < 1 else int(limit)
    if wanted >= size:
        return None, [f"train.limit: {limit:g} leaves out none of {size:,} training samples"]
    # One order for every limit, so that a smaller one takes a part of what a larger one takes.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed_for("limit", seed)))
    if task.learns == "class" and part.target is not None:
        order = order[_evenly(part.target[order])]
    note = f"train.limit: {wanted:,} of {size:,} training samples are used, the same in every epoch"
    return order[:wanted].sort().values, [note]


def _evenly(labels: Tensor) -> Tensor:
    """Return an order of samples in which every beginning has the classes at their shares.

    The first sample of every class comes before all second ones.
    """
    place = torch.empty(len(labels), dtype=torch.float64)
    for number in labels.unique().tolist():
        rows = (labels == number).nonzero().squeeze(1)
        place[rows] = torch.arange(len(rows), dtype=torch.float64) / len(rows)
    # Stable: samples at the same place, such as the first of each class, stay in random order.
    return place.argsort(stable=True)


def _labels(part: RawPart, task: Task, classes: Sequence[str] | None) -> Tensor:
    """Return the class of each sample `(N,)`.

    Raises:
        DataError: samples have no single class.
    """
    target = part.target
    if classes is None or target is None or target.ndim != 1:
        several = task.learns == "labels"
        raise DataError(
            f"oversample needs one class a sample, the task is {task.type!r}"
            + (": a sample has several" if several else ""),
            hint="data.balance: {weights: COLUMN} draws samples by a column of numbers",
            key=_KEY,
        )
    return target


def _weights(part: RawPart, name: str) -> Tensor:
    """Return the weight of each sample, `(N,)` in doubles.

    Raises:
        DataError: a value is no finite number from 0 on.
    """
    found = torch.empty(len(part.table), dtype=torch.float64)
    for row, text in enumerate(part.places["weights"]):
        try:
            value = float(text)
        except ValueError:
            value = -1.0  # refused below, like any other number that is no weight
        if not 0 <= value < float("inf"):
            raise DataError(
                f"column {name!r} holds {shown(text)} in {part.table.place(row)}, a weight is a "
                "number from 0 on",
                key=(*_KEY, "weights"),
            )
        found[row] = value
    return found


def _on_classes(labels: Tensor, classes: Sequence[str], count: int) -> list[str]:
    """Return a line on how often samples come where every class is drawn equally often."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    sizes = {name: size for name, size in zip(classes, counts, strict=True) if size}
    most, least = max(sizes.values()), min(sizes.values())
    if most == least:
        return [f"balance: oversample changes nothing, each class has {most:,} training samples"]
    rarest = [name for name, size in sizes.items() if size == least]
    times = -(-most // least)
    return [
        f"balance: oversample: an epoch draws {most:,} samples of each of {len(sizes)} classes, "
        f"{count:,} in all; the {least:,} of {named(rarest)} are drawn up to {times:,} times each"
    ]


def _on_weights(weights: Tensor, name: str) -> list[str]:
    """Return a line on how often samples come where they have weights."""
    count, never = len(weights), int((weights == 0).sum())
    if bool((weights == weights[0]).all()):
        return [f"balance: all samples have the same weight in {name!r}: none is drawn more often"]
    often = float(weights.max() / weights.sum()) * count
    line = (
        f"balance: an epoch draws {count:,} samples by the weights in {name!r}, some of them up to "
        f"{-int(-often // 1):,} times"
    )
    return [line + (f"; {never:,} have weight 0 and are never drawn" if never else "")]
