"""Regression: one or more numbers per sample; outputs and targets have the same shape."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from finetune.config.task_keys import RegressionTask
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError
from finetune.models.shapes import describe
from finetune.tasks.column_means import over_columns
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import Feed, Measure, build_measures, takes_batch, target_of
from finetune.tasks.number_metrics import metric_of_numbers
from finetune.tasks.records import Asked, Prediction
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.torch_metrics import measure_of_numbers


def regression(config: RegressionTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: a metric of each output is asked for, and the outputs have no names, or a
            metric takes whole batches.
    """
    measures = tuple(
        over_columns(measure, facts.outputs, _rows) for measure in _measures(config, facts, _flat)
    )
    if config.per_output:
        if len(facts.outputs) < 2:
            raise FinetuneError(
                "per_output needs several target columns",
                hint="data.target: [first, second] names them",
                key=("task", "per_output"),
            )
        _refuse_whole_batches(measures)
        for number, name in enumerate(facts.outputs):
            # Built anew for each output: a metric collects what it is fed.
            each = _measures(config, facts, partial(_column, number))
            measures += tuple(measure.named(f"{measure.name}/{name}") for measure in each)
    return Task(build_losses(config.chosen_losses, facts), measures, read_numbers)


def _refuse_whole_batches(measures: Sequence[Measure]) -> None:
    """Raise for a metric of which each output would have the same figure."""
    for number, measure in enumerate(measures):
        if takes_batch(measure.metric):
            raise FinetuneError(
                f"metric {measure.name!r} takes whole batches, so it has no figure of each output",
                hint="let its update take (outputs, target), or leave out per_output",
                key=("task", "metrics", number),
            )


def _measures(config: RegressionTask, facts: TaskFacts, feed: Feed) -> tuple[Measure, ...]:
    """Return the metrics of the config, fed with what `feed` gives."""
    by_class = partial(measure_of_numbers, facts, feed)
    return build_measures(config.metrics, metric_of_numbers, facts, feed=feed, by_class=by_class)


def _column(number: int, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return one output of each sample and its target, `(B,)` each."""
    said, so = (one.float().flatten(1) for one in (outputs, target_of(batch)))
    return said[:, number], so[:, number]


def _rows(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return numbers and targets with a column for each number of a sample, `(B, K)` each.

    They are in float64 where there is one. Those of more axes, such as images, are one column.
    """
    target = target_of(batch)
    shape = (-1, target.shape[1] if target.ndim == 2 else 1)
    said, so = (one.float().reshape(shape) for one in (outputs, target))
    return (said, so) if said.device.type == "mps" else (said.double(), so.double())


def _flat(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return numbers and targets, both flattened."""
    # Outputs may be of half precision, in which a figure would be rounded.
    return outputs.float().flatten(), target_of(batch).float().flatten()


def read_numbers(outputs: Any, asked: Asked | None = None) -> list[Prediction]:
    """Return outputs `(B, ...)` as plain numbers per sample."""
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the network gives {describe(outputs)}, which cannot be read as numbers",
            key=("model", "layers"),
        )
    rows = outputs.float().reshape(len(outputs), -1).tolist()
    return [Prediction(None, None, {}, tuple(row)) for row in rows]
