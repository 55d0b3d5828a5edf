"""A task: losses, metrics with their directions, and the reader of predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.data.batches import Batch
from finetune.tasks.directions import Directions
from finetune.tasks.metrics import Measure
from finetune.tasks.records import Asked, PredictionRecord, Reader
from finetune.tasks.temperature import Temperature
from finetune.tasks.thresholds import Threshold
from finetune.tasks.weighted_loss import LossSum, WeightedLoss
from finetune.tasks.window_mean import WindowMean


@dataclass(frozen=True, slots=True)
class Task:
    """Losses and metrics of a run, and the function that reads predictions from outputs."""

    losses: tuple[WeightedLoss, ...]
    metrics: tuple[Measure, ...]
    reader: Reader
    remark: Callable[[Any, Batch], str | None] | None = None
    """Returns a line on how the outputs meet the targets of a batch, or None; None without any."""
    picture: str | None = None
    """What the pictures of its records show, as one word; None if they have no `picture()`."""
    threshold: Threshold | None = None
    """The threshold of labels or of the second class; None where there is none."""
    temperature: Temperature | None = None
    """Calibrates the probabilities of classes; None where that is not asked for."""
    has_evaluation_loss: bool = True
    """Whether there is a loss in evaluation; a network with losses of its own has none there."""
    owners: tuple[str, ...] = ()
    """Name of the task that each loss belongs to, in a list of tasks; empty for a single task."""

    @property
    def directions(self) -> Directions:
        """Which way the figures of the validation samples improve."""
        tasks = tuple(dict.fromkeys(self.owners))
        return Directions.of(self.metrics, tasks, has_loss=self.has_evaluation_loss)

    @property
    def whole_window_losses(self) -> tuple[str, ...]:
        """Names of the losses that need whole windows."""
        return tuple(loss.name for loss in self.losses if loss.whole_window)

    @property
    def hard_losses(self) -> tuple[str, ...]:
        """Names of the losses that are not known to take shares of classes as targets.

        Such shares come from mixup and cutmix; an imported loss says by `soft_targets` that it
        takes them.
        """
        return tuple(loss.name for loss in self.losses if not loss.takes_shares)

    def parts(self, outputs: Any, batch: Batch) -> list[LossSum]:
        """Return the weighted sum and the count of each loss over a micro-batch.

        Raises:
            ModelError: a loss cannot take what the network gives.
        """
        return [loss(outputs, batch) for loss in self.losses]

    def evaluated_parts(self, outputs: Any, batch: Batch) -> list[LossSum]:
        """Return what `parts` returns; nothing if there is no loss in evaluation."""
        return self.parts(outputs, batch) if self.has_evaluation_loss else []

    def figures_of_losses(self, means: Sequence[float]) -> dict[str, float]:
        """Return the loss by tag, and those of each task of a list, which add up to it.

        Args:
            means: The mean of each loss over a split; none if there is no loss in evaluation.
        """
        if not self.has_evaluation_loss:
            return {}
        figures = {"loss": sum(means)}
        # A single task has losses without owners: its loss is the whole.
        for name, mean in zip(self.owners, means, strict=False):
            figures[f"{name}/loss"] = figures.get(f"{name}/loss", 0.0) + mean
        return figures

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss of a batch that is a whole window, `()`: the sum of the losses' means."""
        return add_up(WindowMean(self.losses, [batch]).shares(self.parts(outputs, batch)))

    def read(self, outputs: Any, asked: Asked | None = None) -> list[PredictionRecord]:
        """Return the record of each sample.

        Args:
            outputs: What the network gives.
            asked: The samples, for readers that need more than outputs.
        """
        return self.reader(outputs, asked)

    def update_metrics(self, outputs: Any, batch: Batch) -> None:
        """Add a batch to every metric.

        Raises:
            ModelError: a metric cannot take what the network gives.
        """
        for metric in self.metrics:
            metric.update(outputs, batch)

    def compute_metrics(
        self, left_out: dict[str, str] | None = None, *, is_finite: bool = True
    ) -> dict[str, float]:
        """Return every metric that is defined on its batches, and reset all of them.

        Args:
            left_out: Receives, by metric, why it is not defined; also for each part of a metric
                that its figure is not of, such as `mean_iou of class 'road'`.
            is_finite: Whether the outputs were finite, so that NaN comes from a metric.
        """
        figures: dict[str, float] = {}
        for metric in self.metrics:
            figure, fault = metric.compute(is_finite=is_finite)
            if figure is not None:
                figures[metric.name] = figure
                parts = metric.parts_left_out().items()
                faults = {f"{metric.name} of {part}": reason for part, reason in parts}
            else:
                faults = {} if fault is None else {metric.name: fault}
            if left_out is not None:
                left_out |= faults
        # Only now, and not one by one: the scores of classes read the counts of another metric.
        self.reset_metrics()
        return figures

    def reset_metrics(self) -> None:
        """Reset all metrics."""
        for metric in self.metrics:
            metric.reset()


def add_up(shares: Sequence[Tensor]) -> Tensor:
    """Return the sum of what several losses give, `()` each."""
    # Not from 0, which `sum` begins with: that is one more operation in the graph.
    return sum(shares[1:], start=shares[0])
