"""Metrics of training samples, from the outputs that a step computes anyway."""

from collections.abc import Sequence
from typing import Any

from finetune.data.batches import Batch
from finetune.tasks.metrics import Measure
from finetune.tasks.task import Task

_MEANS = {"accuracy", "pixel_accuracy", "mse", "mae", "rmse"}
"""Metrics that say something of the few samples of one step: means over samples or pixels."""


def measures_of_steps(task: Task) -> tuple[Measure, ...]:
    """Return the metrics of a task that are of use for single steps, with sums of their own."""
    copies = (measure.apart() for measure in task.metrics if _is_mean(measure.name))
    return tuple(copy for copy in copies if copy is not None)


def _is_mean(name: str) -> bool:
    """Tell whether a metric is such a mean, also one of a task in a list."""
    return name.rpartition("/")[2] in _MEANS


class TrainMetrics:
    """Collects the micro-batches of one step.

    Args:
        measures: The metrics; none to measure nothing.
    """

    __slots__ = ("_measures",)

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._measures = measures
        for measure in measures:
            # A step that failed half-way has left its samples.
            measure.reset()

    def add(self, outputs: Any, batch: Batch) -> None:
        """Add a micro-batch."""
        for measure in self._measures:
            measure.update(outputs, batch)

    def result(self) -> dict[str, float]:
        """Return each metric of the step's samples that is defined, by name."""
        # Not finite outputs never get here: the step is refused before.
        computed = {measure.name: measure.compute(is_finite=True) for measure in self._measures}
        return {name: figure for name, (figure, _) in computed.items() if figure is not None}
