"""Metrics of a task: what each takes, which way it improves, and when it is not defined.

Letters: B samples, C classes or labels.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, assert_never

import torch
from torch import Tensor

from finetune.config.task import (
    Better,
    ClassificationTask,
    ImportMetric,
    MultilabelTask,
    RegressionTask,
)
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key, ModelError, did_you_mean
from finetune.importing import call_trusted
from finetune.models.shapes import describe, first_line
from finetune.tasks.conditions import Condition, condition_of
from finetune.tasks.running_metrics import (
    RunningMetric,
    metric_of_classes,
    metric_of_labels,
    metric_of_numbers,
)

if TYPE_CHECKING:
    import torchmetrics

Feed = Callable[[Any, Tensor], tuple[Any, Tensor]]
"""Function that turns outputs and target into what a metric takes."""


_Measured = ClassificationTask | MultilabelTask | RegressionTask


class Metric(Protocol):
    """A metric that collects batches: a `RunningMetric`, or one of torchmetrics."""

    def update(self, outputs: Any, target: Any) -> None:
        """Add a batch."""

    def compute(self) -> Any:
        """Return the figure of all batches."""

    def reset(self) -> None:
        """Forget the batches."""


class Measure:
    """A metric of a task: it collects batches and gives one figure, or the reason for none.

    Args:
        name: Its name in the logs.
        metric: Computes the figure.
        better: Which way it improves; None if unknown.
        new_condition: Makes the condition that decides whether it is defined.
        feed: Turns outputs and target into what `metric` takes.
    """

    def __init__(
        self,
        name: str,
        metric: Metric,
        *,
        better: Better | None,
        new_condition: Callable[[], Condition],
        feed: Feed,
    ) -> None:
        self.name, self.metric, self.better = name, metric, better
        self._new_condition, self._feed = new_condition, feed
        self._condition = new_condition()

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
            # After the metric, which refuses targets that a condition could not count.
            self._condition.add(target)
        except (ValueError, RuntimeError, IndexError) as error:
            raise misfit(f"metric {self.name!r}", fed, target, error) from error

    def compute(self, *, is_finite: bool) -> tuple[float | None, str | None]:
        """Return the figure, or None and the reason why it is not defined.

        Args:
            is_finite: Whether the outputs were finite, so that NaN comes from the metric.
        """
        # Asked first: torchmetrics gives a number for some metrics that are not defined.
        fault = self._condition.fault()
        if fault is not None:
            return None, fault
        try:
            computed = self.metric.compute()
        except ValueError as error:  # torchmetrics has seen too few samples
            return None, first_line(error)
        if isinstance(computed, Tensor) and computed.numel() != 1:
            raise ModelError(
                f"metric {self.name!r} gives {describe(computed)}, needs one number", key=("task",)
            )
        figure = float(computed)
        # NaN of a network that diverged is a figure to show, and no reason to leave it out.
        if figure != figure and is_finite:
            return None, "it gives NaN"
        return figure, None

    def reset(self) -> None:
        """Forget the batches."""
        self.metric.reset()
        self._condition = self._new_condition()

    def _update_without_target(self, outputs: Any, batch: Batch) -> None:
        """Feed a metric whose `update` takes outputs and batch, or outputs alone.

        Raises:
            ModelError: it takes something else.
        """
        signature = inspect.signature(type(self.metric).update)
        for given in ((outputs, batch), (outputs,)):
            try:
                # Bound before the call, so that a TypeError inside the metric is not taken for a
                # wrong call.
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
    """Which way every figure of an evaluation improves; nothing else decides this.

    Args:
        by_tag: The direction by tag (`validation/loss`); None if unknown.
    """

    by_tag: Mapping[str, Better | None]

    @classmethod
    def of(cls, measures: Sequence[Measure], split: str = "validation") -> "Directions":
        """Return the directions of a task's metrics and of the loss, which comes first."""
        declared: dict[str, Better | None] = {f"{split}/loss": "lower"}
        return cls(declared | {f"{split}/{one.name}": one.better for one in measures})

    def falls(self, tag: str) -> bool:
        """Tell whether lower figures are the better ones."""
        return self.by_tag[tag] == "lower"

    def main(self) -> str | None:
        """Return the tag that `checkpoint: {best: auto}` means.

        It is the first metric of the task whose direction is known, else the loss. None if nothing
        is evaluated.
        """
        loss_first = [tag for tag, better in self.by_tag.items() if better is not None]
        # The loss comes first in the mapping, and is the last choice.
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
    config: _Measured,
    *,
    names: Sequence[str] | None,
    feed: Feed,
    trust: Collection[str],
    device: torch.device,
) -> tuple[Measure, ...]:
    """Build the metrics of a built-in task.

    Raises:
        FinetuneError: an imported metric is not one of torchmetrics, or cannot be built.
    """
    made: list[Measure] = []
    for number, entry in enumerate(config.metrics):
        if isinstance(entry, ImportMetric):
            key: Key = ("task", "metrics", number)
            own = call_trusted(entry.path, entry.args, trust, key=key)
            found = imported_metric(entry.label, own, key)
            better = entry.better
            made.append(
                measure_of(entry.label, found, better, names=names, feed=feed, device=device)
            )
        # A ranking needs all outputs at once, so it has no running sums of our own.
        elif entry == "auroc":
            ranking = _auroc(config, names or ())
            made.append(measure_of(entry, ranking, None, names=names, feed=feed, device=device))
        else:
            made.append(_measure_of_ours(entry, _built_in(config, entry, names or ()), feed))
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
    """Return a hint: with which layer the network gives outputs that fit the targets."""
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


def imported_metric(name: str, metric: object, key: Key) -> "torchmetrics.Metric":
    """Return an imported metric, which must be one of torchmetrics.

    Raises:
        FinetuneError: it is not one.
    """
    # It takes longer to load than torch, so only runs with such a metric load it.
    import torchmetrics

    if not isinstance(metric, torchmetrics.Metric):
        raise FinetuneError(
            f"metric {name!r} is {type(metric).__name__}, needs a torchmetrics.Metric",
            key=(*key, "path"),
        )
    return metric


def measure_of(
    name: str,
    metric: "torchmetrics.Metric",
    better: Better | None,
    *,
    names: Sequence[str] | None,
    feed: Feed,
    device: torch.device,
) -> Measure:
    """Return a metric of torchmetrics as a metric of a task.

    Args:
        name: Its name in the logs.
        metric: The metric.
        better: Which way it improves; None to ask its `higher_is_better`.
        names: Classes or labels of the task, if it has any.
        feed: Turns outputs and target into what the metric takes.
        device: Device of outputs and targets, where the metric is kept.
    """
    if better is None and metric.higher_is_better is not None:
        better = "higher" if metric.higher_is_better else "lower"
    condition = partial(condition_of, metric, names)
    return Measure(name, metric.to(device), better=better, new_condition=condition, feed=feed)


def _measure_of_ours(name: str, metric: RunningMetric, feed: Feed) -> Measure:
    """Return a running metric as a metric of a task."""
    better: Better = "higher" if metric.higher_is_better else "lower"
    return Measure(name, metric, better=better, new_condition=metric.new_condition, feed=feed)


def _built_in(config: _Measured, name: Any, names: Sequence[str]) -> RunningMetric:
    """Return the running metric that a config names."""
    match config:
        case ClassificationTask():
            return metric_of_classes(name, names)
        case MultilabelTask(threshold=threshold):
            return metric_of_labels(name, names, threshold)
        case RegressionTask():
            return metric_of_numbers(name)
        case _:
            assert_never(config)


def _auroc(config: _Measured, names: Sequence[str]) -> "torchmetrics.Metric":
    """Return the area under the ROC curve, a mean over classes or labels."""
    from torchmetrics import classification  # see `imported_metric`

    if not isinstance(config, MultilabelTask):
        return classification.MulticlassAUROC(num_classes=len(names), average="macro")
    # torchmetrics refuses one label among "multilabel": the mean over one is that of "binary"
    if len(names) == 1:
        return classification.BinaryAUROC()
    return classification.MultilabelAUROC(num_labels=len(names), average="macro")
