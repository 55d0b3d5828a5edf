"""Conditions: whether a metric is defined on the targets that it has seen.

Predictions do not matter, so all evaluations of one split have the same metrics. A class that has
samples and is never predicted has precision 0, as usual.

Letters: B samples, C classes or labels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from finetune.errors import named

if TYPE_CHECKING:
    import torchmetrics


class Condition(Protocol):
    """Collects targets beside a metric, and tells whether it is defined on them."""

    def add(self, target: Tensor) -> None:
        """Add the targets of a batch."""

    def fault(self) -> str | None:
        """Return why the metric is not defined on these targets; None if it is."""


class Always:
    """The condition of a metric that is defined on every target."""

    def add(self, target: Tensor) -> None:
        """Do nothing."""

    def fault(self) -> str | None:
        """Return None."""
        return None


class Spread:
    """The condition of a metric that needs two targets or more, not all of them equal."""

    def __init__(self) -> None:
        self._count = 0
        self._bounds: tuple[Tensor, Tensor] | None = None

    def add(self, target: Tensor) -> None:
        """Add the least and the greatest target of a batch."""
        # Kept as tensors: reading them would wait for the device in every batch.
        low, high = target.detach().flatten().aminmax()
        if self._bounds is not None:
            low, high = torch.minimum(self._bounds[0], low), torch.maximum(self._bounds[1], high)
        self._count, self._bounds = self._count + target.numel(), (low, high)

    def fault(self) -> str | None:
        """Return why targets differ too little; None if they do not."""
        if self._count < 2 or self._bounds is None:
            return f"it needs two targets or more, got {self._count}"
        low, high = (float(bound) for bound in self._bounds)
        return f"every target is {low:g}" if low == high else None


class NotZero:
    """The condition of a metric that divides by each target: no target is 0.

    torchmetrics divides by 1e-6 there, and gives figures of millions.
    """

    def __init__(self) -> None:
        self._count = 0
        self._zeros: Tensor | None = None

    def add(self, target: Tensor) -> None:
        """Add the number of targets that are 0."""
        found = (target == 0).sum()
        self._zeros = found if self._zeros is None else self._zeros + found
        self._count += target.numel()

    def fault(self) -> str | None:
        """Return how many targets are 0; None if there is none."""
        zeros = 0 if self._zeros is None else int(self._zeros)
        return f"{zeros} of {self._count} targets are 0, and it divides by each" if zeros else None


class EveryClass:
    """The condition of a metric that needs samples of every class.

    Args:
        names: The classes or labels, in the order of their numbers.
        needs_others: Whether it also needs samples without each class, as a ranking does.
    """

    def __init__(self, names: Sequence[str], *, needs_others: bool) -> None:
        self._names, self._needs_others = names, needs_others
        self._count = 0
        self._present: Tensor | None = None

    def add(self, target: Tensor) -> None:
        """Add the number of samples per class, from multi-hot targets or class numbers."""
        size = len(self._names)
        if target.ndim == 2 and target.shape[1] == size:
            present = target.long().sum(dim=0)
        else:
            # A number beyond the classes is refused by the metric, which sees the targets first.
            present = torch.bincount(target.long().flatten(), minlength=size)[:size]
        self._count += len(target)
        self._present = present if self._present is None else self._present + present

    def fault(self) -> str | None:
        """Return which classes have no sample, or all of them; None if the metric is defined."""
        counts = [0] * len(self._names) if self._present is None else self._present.tolist()
        absent = [name for name, count in zip(self._names, counts, strict=True) if not count]
        if absent:
            noun = "class" if len(absent) == 1 else "classes"
            return f"none of {self._count} samples is of {noun} {named(absent)}"
        whole = [n for n, count in zip(self._names, counts, strict=True) if count == self._count]
        if whole and self._needs_others:
            return f"all {self._count} samples are of class {named(whole)}"
        return None


class OnePositive:
    """The condition of a binary metric: at least one positive sample."""

    def __init__(self) -> None:
        self._count = 0
        self._positive: Tensor | None = None

    def add(self, target: Tensor) -> None:
        """Add the number of positive samples."""
        found = target.long().sum()
        self._positive = found if self._positive is None else self._positive + found
        self._count += target.numel()

    def fault(self) -> str | None:
        """Return that no sample is positive; None if one is."""
        has_one = self._positive is not None and bool(self._positive)
        return None if has_one else f"none of {self._count} samples is positive"


def condition_of(metric: "torchmetrics.Metric", names: Sequence[str] | None) -> Condition:
    """Return the condition of a metric of torchmetrics.

    Args:
        metric: The metric.
        names: Classes or labels of the task, if it has any.
    """
    # A class of the user's own counts as the one of torchmetrics that it extends.
    of_torchmetrics = (c for c in type(metric).__mro__ if c.__module__.startswith("torchmetrics."))
    kind = next(of_torchmetrics).__name__
    form = next((one for one in ("Binary", "Multiclass", "Multilabel") if kind.startswith(one)), "")
    base = kind.removeprefix(form)
    if base == "MeanAbsolutePercentageError":
        return NotZero()
    if not form or base in _OF_SPREAD:
        return Spread() if base in _OF_SPREAD else Always()
    ranks = base in _OF_BOTH
    # The average `micro` pools all classes, so a class without samples is no fault.
    is_mean = base == "AUROC" or getattr(metric, "average", "macro") in ("macro", "weighted")
    if not is_mean or not (ranks or base in _OF_EACH or (form, base) in _OF_EACH_CLASS):
        return Always()
    # A ranking compares positive with negative samples, so it needs both.
    if form == "Binary":
        both = names if names is not None and len(names) == 2 else ("0", "1")
        return EveryClass(both, needs_others=False) if ranks else OnePositive()
    count: int = getattr(metric, "num_classes", None) or getattr(metric, "num_labels", 0) or 0
    # A metric of the user's own may count other classes than the task has.
    known = names if names is not None and len(names) == count else tuple(map(str, range(count)))
    return EveryClass(known, needs_others=ranks)


_OF_SPREAD = {
    *("R2Score", "ExplainedVariance", "PearsonCorrCoef", "SpearmanCorrCoef"),
    *("ConcordanceCorrCoef", "KendallRankCorrCoef", "RelativeSquaredError"),
    *("MatthewsCorrCoef", "CohenKappa"),
}
"""Metrics that divide by the variance of the targets, or rank them."""
_OF_EACH = {"F1Score", "FBetaScore", "Precision", "Recall", "JaccardIndex", "AveragePrecision"}
"""Means over classes or labels that need a sample of each."""
_OF_EACH_CLASS = {("Multiclass", "Accuracy"), ("Multiclass", "HammingDistance")}
_OF_BOTH = {"AUROC", "EER", "LogAUC", "Specificity", "NegativePredictiveValue"}
"""Those that also need a sample without each."""
