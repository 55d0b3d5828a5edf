"""Regression: one or more numbers per sample; outputs and targets have the same shape."""

from typing import Any

from torch import Tensor

from finetune.config.task_keys import RegressionTask
from finetune.data.batches import Batch
from finetune.errors import ModelError
from finetune.models.shapes import describe
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import build_measures, target_of
from finetune.tasks.records import Asked, Prediction
from finetune.tasks.running_metrics import metric_of_numbers
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts


def regression(config: RegressionTask, facts: TaskFacts) -> Task:
    """Build the task."""
    return Task(
        build_losses(config.chosen_losses, facts),
        build_measures(config.metrics, metric_of_numbers, facts, feed=_flat),
        read_numbers,
    )


def _flat(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return numbers and targets, both flattened."""
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
