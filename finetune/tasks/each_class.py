"""The score of each class beside the mean over classes: `f1/person`, `iou/road`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.tasks.conditions import Always
from finetune.tasks.metrics import Measure
from finetune.tasks.running_metrics import RunningMetric


def with_each_class(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return metrics with the score of each class behind those that are a mean over classes.

    Raises:
        FinetuneError: none of them is one.
    """
    each = tuple(one for measure in measures for one in _of_each_class(measure))
    if not each:
        raise FinetuneError(
            "per_class gives the figures of which a metric is the mean over classes, and no metric "
            "here is such a mean",
            hint="task.metrics: [f1] is one, as are precision and recall, mean_iou and dice",
            key=("task", "per_class"),
        )
    return (*measures, *each)


def _of_each_class(measure: Measure) -> Iterator[Measure]:
    metric = measure.metric
    if not isinstance(metric, RunningMetric) or metric.by_class is None:
        return
    # That of one class is no mean.
    name = measure.name.removeprefix("mean_")
    for number, label in enumerate(metric.by_class.names):
        yield Measure(
            f"{name}/{label}",
            _OfOneClass(metric, number),
            better=measure.better,
            new_condition=Always,
            feed=_nothing,
        )


@dataclass(slots=True)
class _OfOneClass:
    """The score of one class. It collects nothing: the metric of all classes has the counts."""

    whole: RunningMetric
    number: int

    def update(self, *given: Any) -> None:
        """Do nothing."""

    def compute(self) -> Tensor:
        """Return the score of the class over all batches.

        Raises:
            ValueError: no sample is of the class.
        """
        return torch.tensor(self.whole.score_of_class(self.number), dtype=torch.float64)

    def reset(self) -> None:
        """Do nothing."""


def _nothing(outputs: Any, batch: Batch) -> tuple[Any, ...]:
    return ()
