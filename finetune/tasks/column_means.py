"""Metrics of several target columns that are a mean over columns, such as R².

Letters: B samples, K columns.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.tasks.conditions import Always, Condition, Spread
from finetune.tasks.metrics import Feed, Measure, Metric, takes_batch


def over_columns(measure: Measure, names: Sequence[str], feed: Feed) -> Measure:
    """Return a metric of numbers as the mean over columns, if it depends on how targets spread.

    Args:
        measure: The metric; returned as it is if it is a mean of errors, or takes whole batches.
        names: Names of the target columns, if there are several.
        feed: Turns outputs and batch into both as `(B, K)`.
    """
    metric, new_condition = measure.metric, measure.new_condition
    # By its name: importing torchmetrics for a comparison would take longer than importing torch.
    is_scaled = type(metric).__name__ in _SCALED or isinstance(new_condition(), Spread)
    if not is_scaled or takes_batch(metric):
        return measure
    if getattr(metric, "multioutput", None) == "variance_weighted":
        # That is a mean which only the sums over all columns give.
        return measure.fed_otherwise(metric, new_condition, feed)
    return measure.fed_otherwise(MeanOfColumns(metric, new_condition, names), Always, feed)


_SCALED = {"NormalizedRootMeanSquaredError"}
"""Metrics that divide by a number which the targets of a column have in common."""


class _Column(NamedTuple):
    """The metric of one column."""

    name: str
    metric: Metric
    condition: Condition


class MeanOfColumns:
    """The mean of a metric over target columns, as scikit-learn and torchmetrics have R².

    Over all numbers of all columns at once, the distance between the columns would count as
    variance that the outputs explain. A column on which it is not defined is not in the mean.

    Args:
        metric: The metric of one column; copied for each.
        new_condition: Makes the condition that decides whether it is defined on a column.
        names: Names of the columns; they get numbers without any.
    """

    def __init__(
        self, metric: Metric, new_condition: Callable[[], Condition], names: Sequence[str]
    ) -> None:
        self._metric, self._new_condition, self._names = metric, new_condition, names
        self._columns: list[_Column] = []

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets, `(B, K)` each.

        Raises:
            ValueError: they do not fit each other.
        """
        if outputs.shape != target.shape:
            raise ValueError("outputs and targets differ in shape")
        if not self._columns:
            # How many columns there are is known from the first batch only: names may be missing.
            count = target.shape[1]
            named = self._names if len(self._names) == count else range(1, count + 1)
            self._columns = [
                _Column(f"column {name!r}", copy.deepcopy(self._metric), self._new_condition())
                for name in named
            ]
        for number, column in enumerate(self._columns):
            column.metric.update(outputs[:, number], target[:, number])
            column.condition.add(target[:, number])

    def compute(self) -> Tensor:
        """Return the mean over the columns on which the metric is defined, `()`.

        Raises:
            ValueError: there is no such column, with the reason.
        """
        faults = [column.condition.fault() for column in self._columns]
        known = [c.metric for c, fault in zip(self._columns, faults, strict=True) if fault is None]
        if not known:
            raise ValueError(next(filter(None, faults), "it has seen no sample"))
        return torch.stack([torch.as_tensor(metric.compute()) for metric in known]).mean()

    def parts_left_out(self) -> dict[str, str]:
        """Return the columns that are not in the mean, with the reason."""
        found = ((column.name, column.condition.fault()) for column in self._columns)
        return {name: fault for name, fault in found if fault is not None}

    def reset(self) -> None:
        """Forget the batches."""
        # Built anew for the next batches: a condition cannot be reset.
        self._columns = []
