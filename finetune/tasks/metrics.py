"""Metrics of a task: how each is fed, which way it improves, and where it is not defined.

Letters: B samples, C classes or labels.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import classification as of_classes, regression as of_numbers

from finetune.config.task import (
    Better,
    ClassificationTask,
    ImportMetric,
    MultilabelTask,
    RegressionTask,
)
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key, ModelError, did_you_mean, named
from finetune.importing import call_trusted
from finetune.models.shapes import describe, first_line

Feed = Callable[[Any, Tensor], tuple[Any, Tensor]]
"""Outputs and target to both as the metrics take them."""

_SPREAD = (
    of_numbers.R2Score,
    of_numbers.ExplainedVariance,
    of_numbers.PearsonCorrCoef,
    of_numbers.SpearmanCorrCoef,
    of_numbers.ConcordanceCorrCoef,
    of_numbers.KendallRankCorrCoef,
)
"""Metrics that compare with the spread of the targets: not defined where there is none."""
_BY_CLASS = (
    of_classes.MulticlassF1Score,
    of_classes.MulticlassPrecision,
    of_classes.MulticlassRecall,
    of_classes.MultilabelF1Score,
    of_classes.MultilabelPrecision,
    of_classes.MultilabelRecall,
    of_classes.BinaryF1Score,
    of_classes.BinaryPrecision,
    of_classes.BinaryRecall,
)
"""Metrics that need samples of every class where they are means over classes."""
_RANKINGS = (
    of_classes.MulticlassAUROC,
    of_classes.MultilabelAUROC,
    of_classes.BinaryAUROC,
)
"""Metrics that need, for every class, samples of it and samples of others."""


class _Condition(Protocol):
    """Collects what decides whether a metric is defined, beside the metric itself."""

    def add(self, target: Tensor) -> None:
        """Take up the targets of a batch."""

    def fault(self) -> str | None:
        """Return why the metric is not defined on these targets; None if it is."""


class _Always:
    """The condition of a metric that is defined on every target."""

    def add(self, target: Tensor) -> None:
        """Take up nothing."""

    def fault(self) -> str | None:
        """Return None."""
        return None


class _Spread:
    """Two targets or more, and not all of them equal."""

    def __init__(self) -> None:
        self._count = 0
        self._bounds: tuple[Tensor, Tensor] | None = None

    def add(self, target: Tensor) -> None:
        """Take up the least and the greatest target."""
        low, high = target.detach().flatten().aminmax()
        if self._bounds is not None:
            low, high = torch.minimum(self._bounds[0], low), torch.maximum(self._bounds[1], high)
        self._count, self._bounds = self._count + target.numel(), (low, high)

    def fault(self) -> str | None:
        """Return what is missing."""
        if self._count < 2 or self._bounds is None:
            return f"it needs two targets or more, got {self._count}"
        low, high = (float(bound) for bound in self._bounds)
        return f"every target is {low:g}" if low == high else None


class _EveryClass:
    """Samples of every class; for rankings also samples without it.

    Args:
        names: The classes or labels, in the order of their numbers.
        needs_others: Whether a class that all samples have is a fault as well.
    """

    def __init__(self, names: Sequence[str], *, needs_others: bool) -> None:
        self._names, self._needs_others = names, needs_others
        self._count = 0
        self._present: Tensor | None = None

    def add(self, target: Tensor) -> None:
        """Count the samples of each class, on the device."""
        size = len(self._names)
        if target.ndim == 2 and target.shape[1] == size:
            present = target.long().sum(dim=0)
        else:
            present = torch.bincount(target.long().flatten(), minlength=size)[:size]
        self._count += len(target)
        self._present = present if self._present is None else self._present + present

    def fault(self) -> str | None:
        """Return which classes have no sample, or no other beside them."""
        counts = [0] * len(self._names) if self._present is None else self._present.tolist()
        absent = [name for name, count in zip(self._names, counts, strict=True) if not count]
        if absent:
            noun = "class" if len(absent) == 1 else "classes"
            return f"none of {self._count} samples is of {noun} {named(absent)}"
        whole = [n for n, count in zip(self._names, counts, strict=True) if count == self._count]
        if whole and self._needs_others:
            return f"all {self._count} samples are of class {named(whole)}"
        return None


class Measure:
    """One metric: it collects batches and gives one figure, or says why there is none.

    Args:
        name: Its name in the logs.
        metric: What computes it.
        better: Which way it improves; None where nobody has said.
        names: Classes or labels of the task, if it has any.
        feed: How it takes outputs and target.
    """

    def __init__(
        self,
        name: str,
        metric: torchmetrics.Metric,
        *,
        better: Better | None,
        names: Sequence[str] | None,
        feed: Feed,
    ) -> None:
        self.name, self.metric, self.better = name, metric, better
        self._names, self._feed = names, feed
        self._condition = _condition(metric, names)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add a batch. A task without target hands its metrics the batch itself.

        Raises:
            ModelError: the metric cannot take what the network gives.
        """
        if batch.target is None:
            self._update_without_target(outputs, batch)
            return
        fed, target = self._feed(outputs, batch.target)
        try:
            self.metric.update(fed, target)
            self._condition.add(target)
        except (ValueError, RuntimeError, IndexError) as error:
            raise misfit(f"metric {self.name!r}", fed, target, error) from error

    def compute(self, *, is_finite: bool) -> tuple[float | None, str | None]:
        """Return the figure, or None and the reason why it is not defined.

        Args:
            is_finite: Whether the network's outputs were. Then NaN comes from the metric.
        """
        fault = self._condition.fault()
        if fault is not None:
            return None, fault
        try:
            computed = self.metric.compute()
        except ValueError as error:  # how torchmetrics says that it has seen too little
            return None, first_line(error)
        if isinstance(computed, Tensor) and computed.numel() != 1:
            raise ModelError(
                f"metric {self.name!r} gives {describe(computed)}, needs one number", key=("task",)
            )
        figure = float(computed)
        if figure != figure and is_finite:
            return None, "it gives NaN"
        return figure, None

    def reset(self) -> None:
        """Forget the batches."""
        self.metric.reset()
        self._condition = _condition(self.metric, self._names)

    def _update_without_target(self, outputs: Any, batch: Batch) -> None:
        """Feed a metric whose `update` takes outputs and batch, or outputs alone.

        Raises:
            ModelError: it takes something else.
        """
        signature = inspect.signature(type(self.metric).update)
        for given in ((outputs, batch), (outputs,)):
            try:
                signature.bind(self.metric, *given)
            except TypeError:
                continue
            self.metric.update(*given)
            return
        raise ModelError(
            f"metric {self.name!r} takes {signature}; without data.target it is fed with "
            "(outputs, batch), or with (outputs) alone",
            key=("task",),
        )


@dataclass(frozen=True, slots=True)
class Directions:
    """Which way every figure of an evaluation improves: the only place that knows.

    Args:
        by_tag: The direction by tag (`validation/loss`); None where nobody has said.
    """

    by_tag: Mapping[str, Better | None]

    @classmethod
    def of(cls, measures: Sequence[Measure], split: str = "validation") -> "Directions":
        """Return the directions of the metrics of a task. The loss falls."""
        declared: dict[str, Better | None] = {f"{split}/loss": "lower"}
        return cls(declared | {f"{split}/{one.name}": one.better for one in measures})

    def falls(self, tag: str) -> bool:
        """Tell whether lower figures are the better ones."""
        return self.by_tag[tag] == "lower"

    def main(self) -> str | None:
        """Return the metric by which weights are compared where nobody names one.

        The first one of the task whose direction is known, else the loss; None where nothing is
        ever evaluated.
        """
        loss_first = [tag for tag, better in self.by_tag.items() if better is not None]
        return next(iter([*loss_first[1:], *loss_first[:1]]), None)

    def fault(self, tag: str, key: Key) -> FinetuneError | None:
        """Return why a metric cannot be watched; None if it can.

        Args:
            tag: The metric, as a rule of the config names it.
            key: That rule.
        """
        if tag not in self.by_tag:
            known = ", ".join(sorted(self.by_tag)) or "none, for there are no validation samples"
            return FinetuneError(
                f"no metric {tag!r} is ever logged; there are: {known}",
                hint=did_you_mean(tag, self.by_tag),
                key=key,
            )
        if self.by_tag[tag] is None:
            name = tag.partition("/")[2]
            return FinetuneError(
                f"metric {tag!r} does not say which way it improves",
                hint="set higher_is_better = True or False in its class, or write better: higher "
                f"or lower beside its path (task: {{type: import, better: {{{name}: lower}}}})",
                key=key,
            )
        return None


def build_measures(
    config: ClassificationTask | MultilabelTask | RegressionTask,
    *,
    names: Sequence[str] | None,
    feed: Feed,
    trust: Collection[str],
    device: torch.device,
) -> tuple[Measure, ...]:
    """Build the metrics that a task of ours names.

    Raises:
        FinetuneError: one of the user's own is not what it must be.
    """
    made: list[Measure] = []
    for number, entry in enumerate(config.metrics):
        better: Better | None = None
        if isinstance(entry, ImportMetric):
            key: Key = ("task", "metrics", number)
            name, better = entry.label, entry.better
            metric = call_trusted(entry.path, entry.args, trust, key=key)
            refuse_no_metric(name, metric, key)
        else:
            name, metric = entry, _built_in(config, entry, names or ())
        better = better or declared_direction(metric)
        made.append(Measure(name, metric.to(device), better=better, names=names, feed=feed))
    return tuple(made)


def misfit(name: str, outputs: Any, target: Any, error: Exception) -> ModelError:
    """Return the error of a loss or metric that cannot take what the network gives."""
    return ModelError(
        f"{name} cannot take {describe(outputs)} with targets {describe(target)}: "
        f"{first_line(error)}",
        hint=_remedy(outputs, target),
        key=("model", "layers"),
    )


def _remedy(outputs: Any, target: Any) -> str:
    """Say what the network must end with to give what the targets are."""
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
        return "the last layer must give what the task learns"
    if not target.is_floating_point():
        width = "classes"
    else:
        width = str(target.shape[1]) if target.ndim == 2 else "1"
    last = f"{{name: head, type: Linear, out_features: {width}}}"
    if outputs.ndim > 2 and target.ndim <= 2:
        return f"give one row a sample: pool over the other axes first, then end with {last}"
    return f"the last layer must give what the task learns: end the network with {last}"


def refuse_no_metric(name: str, metric: object, key: Key) -> None:
    """Refuse a metric of the user's own that is none of torchmetrics.

    Raises:
        FinetuneError: it is something else.
    """
    if not isinstance(metric, torchmetrics.Metric):
        raise FinetuneError(
            f"metric {name!r} is {type(metric).__name__}, needs a torchmetrics.Metric",
            key=(*key, "path"),
        )


def declared_direction(metric: torchmetrics.Metric) -> Better | None:
    """Return which way a metric says that it improves, if it does."""
    if metric.higher_is_better is None:
        return None
    return "higher" if metric.higher_is_better else "lower"


def _built_in(
    config: ClassificationTask | MultilabelTask | RegressionTask, name: str, names: Sequence[str]
) -> torchmetrics.Metric:
    if isinstance(config, RegressionTask):
        return _of_numbers(name)
    kinds: dict[str, Callable[..., Any]] = {
        "accuracy": torchmetrics.Accuracy,
        "f1": torchmetrics.F1Score,
        "precision": torchmetrics.Precision,
        "recall": torchmetrics.Recall,
        "auroc": torchmetrics.AUROC,
    }
    settings: dict[str, Any]
    if isinstance(config, MultilabelTask):
        # torchmetrics refuses one label among "multilabel": the mean over one is that of "binary"
        settings = {"task": "multilabel", "num_labels": len(names), "average": "macro"}
        if len(names) == 1:
            settings = {"task": "binary"}
        if name != "auroc":
            settings["threshold"] = config.threshold
    else:
        average = "micro" if name == "accuracy" else "macro"
        settings = {"task": "multiclass", "num_classes": len(names), "average": average}
    made: torchmetrics.Metric = kinds[name](**settings)
    return made


def _of_numbers(name: str) -> torchmetrics.Metric:
    match name:
        case "mse":
            return of_numbers.MeanSquaredError()
        case "rmse":
            return of_numbers.MeanSquaredError(squared=False)
        case "mae":
            return of_numbers.MeanAbsoluteError()
        case _:
            return of_numbers.R2Score()


def _condition(metric: torchmetrics.Metric, names: Sequence[str] | None) -> _Condition:
    """Return what a metric needs to be defined, judged by the targets alone.

    Predictions have no say, so that all evaluations of one split have the same metrics. A class
    that is there and never predicted has precision 0, as everywhere.
    """
    if isinstance(metric, _SPREAD):
        return _Spread()
    is_ranking = isinstance(metric, _RANKINGS)
    is_mean = is_ranking or getattr(metric, "average", "macro") in ("macro", "weighted")
    if not (is_ranking or isinstance(metric, _BY_CLASS)) or not is_mean:
        return _Always()
    if isinstance(metric, of_classes.BinaryAUROC):
        return _EveryClass(("0", "1"), needs_others=False)
    if type(metric).__name__.startswith("Binary"):
        return _Positive()
    count: int = getattr(metric, "num_classes", None) or getattr(metric, "num_labels", 0) or 0
    known = names if names is not None and len(names) == count else tuple(map(str, range(count)))
    return _EveryClass(known, needs_others=is_ranking)


class _Positive:
    """Samples of the one class that a binary metric is about."""

    def __init__(self) -> None:
        self._count = 0
        self._positive: Tensor | None = None

    def add(self, target: Tensor) -> None:
        """Count the positive samples, on the device."""
        found = target.long().sum()
        self._positive = found if self._positive is None else self._positive + found
        self._count += target.numel()

    def fault(self) -> str | None:
        """Return that there is none."""
        has_one = self._positive is not None and bool(self._positive)
        return None if has_one else f"none of {self._count} samples is positive"
