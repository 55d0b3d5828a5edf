"""Metrics of a task: what each takes, which way it improves, and when it is not defined.

Letters: B samples, C classes or labels.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from finetune.config.metric_keys import Better, ImportMetric, TorchMetric
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import call_trusted
from finetune.models.shapes import describe, first_line
from finetune.tasks.collecting import CollectingMetric
from finetune.tasks.conditions import Condition, condition_of
from finetune.tasks.running_metrics import RunningMetric
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import misfit
from finetune.tasks.views import View

if TYPE_CHECKING:
    import torchmetrics

Feed = Callable[[Any, Batch], tuple[Any, ...]]
"""Function that turns outputs and batch into what a metric takes: outputs, and mostly targets."""


class Metric(Protocol):
    """A metric that collects batches: a `RunningMetric`, or one of torchmetrics."""

    def update(self, *given: Any) -> None:
        """Add a batch."""

    def compute(self) -> Any:
        """Return the figure of all batches."""

    def reset(self) -> None:
        """Forget the batches."""


@runtime_checkable
class OfParts(Protocol):
    """A metric that is a mean over parts, such as classes, of which some may not be defined."""

    def parts_left_out(self) -> dict[str, str]:
        """Return the parts, such as classes, that the mean over all batches leaves out, and why."""


class Measure:
    """A metric of a task: it collects batches and gives one figure, or the reason for none.

    Args:
        name: Its name in the logs.
        metric: Computes the figure.
        better: Which way it improves; None if unknown.
        new_condition: Makes the condition that decides whether it is defined.
        feed: Turns outputs and batch into what `metric` takes.
        view: What it sees of outputs and batch; None for all.
    """

    def __init__(
        self,
        name: str,
        metric: Metric,
        *,
        better: Better | None,
        new_condition: Callable[[], Condition],
        feed: Feed,
        view: View | None = None,
    ) -> None:
        self.name, self.metric, self.better, self._view = name, metric, better, view
        self.new_condition, self._feed = new_condition, feed
        self._condition = new_condition()
        self._is_fed = False

    def named(self, name: str) -> "Measure":
        """Return this metric under another name."""
        return self._made(name, self.metric, self.new_condition, self._feed)

    def seen_by(self, view: View) -> "Measure":
        """Return this metric as one of a task in a list, which sees a part of outputs and batch."""
        return Measure(
            f"{view.task}/{self.name}",
            self.metric,
            better=self.better,
            new_condition=self.new_condition,
            feed=self._feed,
            view=view,
        )

    def apart(self) -> "Measure | None":
        """Return this metric for other batches, with sums of its own; None for one of a library."""
        if not isinstance(self.metric, RunningMetric):
            return None
        own = replace(self.metric)
        own.reset()
        return self._made(self.name, own, self.new_condition, self._feed)

    def fed_otherwise(
        self, metric: Metric, new_condition: Callable[[], Condition], feed: Feed
    ) -> "Measure":
        """Return a measure of this name and direction that computes and is fed otherwise."""
        return self._made(self.name, metric, new_condition, feed)

    def _made(
        self, name: str, metric: Metric, new_condition: Callable[[], Condition], feed: Feed
    ) -> "Measure":
        return Measure(
            name,
            metric,
            better=self.better,
            new_condition=new_condition,
            feed=feed,
            view=self._view,
        )

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add a batch.

        Raises:
            ModelError: the metric cannot take what the network gives.
        """
        if self._view is not None:
            outputs, batch = self._view.of(outputs, batch)
            # No sample has a target: some metrics refuse an empty batch.
            if not len(batch):
                return
        self._is_fed = True
        fed = self._fed(outputs, batch)
        target = fed[1] if len(fed) > 1 else None
        try:
            self.metric.update(*fed)
            # After the metric, which refuses targets that a condition could not count.
            if isinstance(target, Tensor):
                self._condition.add(target)
        except (ValueError, RuntimeError, IndexError) as error:
            raise misfit(f"metric {self.name!r}", fed[0], target, error) from error

    def _fed(self, outputs: Any, batch: Batch) -> tuple[Any, ...]:
        """Return what the metric takes; raise `ModelError` if the outputs do not have it."""
        try:
            return self._feed(outputs, batch)
        # A loss of the user's own may take outputs of any form, such as a dict.
        except (ValueError, RuntimeError, IndexError, AttributeError, TypeError) as error:
            raise misfit(f"metric {self.name!r}", outputs, batch.target, error) from error

    def compute(self, *, is_finite: bool) -> tuple[float | None, str | None]:
        """Return the figure, or None and the reason why it is not defined.

        Args:
            is_finite: Whether the outputs were finite, so that NaN comes from the metric.
        """
        if self._view is not None and not self._is_fed:
            return None, "no sample has the target"
        # Asked first: torchmetrics gives a number for some metrics that are not defined.
        fault = self._condition.fault()
        if fault is not None:
            return None, fault
        try:
            computed = self._computed()
        except ValueError as error:  # torchmetrics has seen too few samples
            return None, first_line(error)
        if isinstance(computed, Tensor) and computed.numel() != 1:
            raise ModelError(
                f"metric {self.name!r} gives {describe(computed)}, needs one number", key=("task",)
            )
        figure = float(computed)
        # NaN of a network that diverged is a figure to show, and no reason to leave it out.
        if not math.isfinite(figure) and is_finite:
            return None, "it gives NaN" if math.isnan(figure) else "it gives infinity"
        return figure, None

    def _computed(self) -> Any:
        if isinstance(self.metric, RunningMetric):
            return self.metric.compute()
        with warnings.catch_warnings():
            # torchmetrics warns of figures that are not defined: those are left out and told.
            warnings.simplefilter("ignore")
            return self.metric.compute()

    def parts_left_out(self) -> dict[str, str]:
        """Return what the figure of all batches is not of, such as a class, with the reason."""
        return self.metric.parts_left_out() if isinstance(self.metric, OfParts) else {}

    def reset(self) -> None:
        """Forget the batches."""
        self.metric.reset()
        self._condition = self.new_condition()
        self._is_fed = False


def target_of(batch: Batch) -> Tensor:
    """Return the target of a batch for a task that always has one."""
    assert batch.target is not None
    return batch.target


def build_measures(
    entries: Sequence[str | ImportMetric | TorchMetric],
    named: Callable[[Any], Metric],
    facts: TaskFacts,
    *,
    feed: Feed,
    feeds: Mapping[str, Feed] = MappingProxyType({}),
    by_class: Callable[[TorchMetric, Key], Measure] | None = None,
) -> tuple[Measure, ...]:
    """Build the metrics of a built-in task.

    Args:
        entries: The metrics of the config.
        named: Returns the metric that the task knows by a name.
        facts: What the task is built from.
        feed: Turns outputs and batch into what the metrics take.
        feeds: The same for built-in metrics that take something else, by name.
        by_class: Builds a metric that is named by its class, given its place in the config.

    Raises:
        FinetuneError: an imported metric is not one of torchmetrics, or cannot be built.
    """
    measures = []
    for number, entry in enumerate(entries):
        if isinstance(entry, TorchMetric):
            # The schema has such metrics only for tasks that build them.
            assert by_class is not None
            measures.append(by_class(entry, ("task", "metrics", number)))
        else:
            measures.append(_measure(number, entry, named, facts, feeds.get(str(entry), feed)))
    return tuple(measures)


def _measure(
    number: int,
    entry: str | ImportMetric,
    named: Callable[[Any], Metric],
    facts: TaskFacts,
    feed: Feed,
) -> Measure:
    """Build one metric; `number` is its place in the config."""
    if isinstance(entry, ImportMetric):
        key: Key = ("task", "metrics", number)
        own = call_trusted(entry.path, entry.args, facts.trust, key=key)
        found = imported_metric(entry.label, own, key)
        return measure_of(entry.label, found, entry.better, facts, _with_batch(found) or feed)
    metric = named(entry)
    if not isinstance(metric, RunningMetric | CollectingMetric):
        return measure_of(entry, imported_metric(entry, metric, ("task",)), None, facts, feed)
    better: Better = "higher" if metric.higher_is_better else "lower"
    return Measure(entry, metric, better=better, new_condition=metric.new_condition, feed=feed)


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
    facts: TaskFacts,
    feed: Feed,
) -> Measure:
    """Return a metric of torchmetrics as a metric of a task.

    Args:
        name: Its name in the logs.
        metric: The metric.
        better: Which way it improves; None to ask its `higher_is_better`.
        facts: What the task is built from.
        feed: Turns outputs and batch into what the metric takes.
    """
    if better is None and metric.higher_is_better is not None:
        better = "higher" if metric.higher_is_better else "lower"
    condition = partial(condition_of, metric, facts.classes)
    return Measure(name, metric.to(facts.device), better=better, new_condition=condition, feed=feed)


def own_feed(name: str, metric: "torchmetrics.Metric") -> Feed:
    """Return what a metric of an imported task takes.

    It gets `(outputs, batch)` if the second argument of its `update` is called `batch`, or if the
    data has no target; else `(outputs, target)`. One with a single argument gets the outputs.
    """
    return _with_batch(metric) or partial(_own_arguments, name, metric)


def _with_batch(metric: "torchmetrics.Metric") -> Feed | None:
    """Return that a metric gets outputs and batch if it asks for the batch by name."""
    return _outputs_and_batch if takes_batch(metric) else None


def takes_batch(metric: Metric) -> bool:
    """Tell whether the second argument of a metric's `update` is called `batch`."""
    return list(inspect.signature(metric.update).parameters)[1:2] == ["batch"]


def _outputs_and_batch(outputs: Any, batch: Batch) -> tuple[Any, ...]:
    return outputs, batch


def _own_arguments(
    name: str, metric: "torchmetrics.Metric", outputs: Any, batch: Batch
) -> tuple[Any, ...]:
    """Return what a metric of the user's own takes.

    Raises:
        ModelError: without a target it takes neither outputs and batch nor outputs alone.
    """
    if batch.target is not None:
        return outputs, batch.target
    signature = inspect.signature(type(metric).update)
    for given in ((outputs, batch), (outputs,)):
        try:
            # Bound before the call, so that a TypeError inside the metric is not taken for a
            # wrong call.
            signature.bind(metric, *given)
        except TypeError:
            continue
        return given
    raise ModelError(
        f"metric {name!r} takes {signature}; without data.target it is fed with "
        "(outputs, batch), or with (outputs) alone",
        key=("task",),
    )
