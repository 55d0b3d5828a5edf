"""What is measured in a step that is logged; other steps touch none of it.

A network's passes drive all else out of the processor's caches, so that even a function that does
nothing costs some microseconds a step: of a small network 1 per cent of a step in sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.batches import Batch
from finetune.tasks.metrics import Measure
from finetune.tasks.task import Task
from finetune.train.block_figures import BlockFigures, Values
from finetune.train.gradients import LossNorms
from finetune.train.laps import Laps
from finetune.train.train_metrics import TrainMetrics


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Figures of a logged step besides its loss and the norm of its gradient."""

    loss_norms: dict[str, Tensor]
    """Gradient norm of each loss alone, where the config asks for it."""
    metrics: dict[str, float]
    """Metrics of the step's samples as it met them, with dropout and before the update."""
    laps: dict[str, float]
    """Seconds of forward pass, backward pass and update."""
    gradients: dict[str, Tensor]
    """Gradient norm of each block, after clipping, where blocks are told."""
    ratios: dict[str, Tensor]
    """Size of the update of each block in units of its weights, where blocks are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMeter:
    """Begins to measure the steps that are logged."""

    model: nn.Module
    task: Task
    measures: tuple[Measure, ...]
    """Metrics of the samples of a step."""
    blocks: BlockFigures
    device: torch.device
    log_gradient_norms: bool
    """Whether the gradient of each loss alone is measured."""

    def begin(self, *, tells_blocks: bool) -> "StepMeasuring":
        """Begin to measure a step, its blocks too if they are told."""
        is_on = self.log_gradient_norms
        parameters = [p for p in self.model.parameters() if p.requires_grad] if is_on else []
        return StepMeasuring(
            LossNorms([loss.name for loss in self.task.losses], parameters),
            TrainMetrics(self.measures),
            Laps(self.device),
            self.blocks if tells_blocks else None,
        )


class StepMeasuring:
    """Measures one step; its calls come in the order of the methods."""

    __slots__ = ("_before", "_blocks", "_gradients", "_laps", "_loss_norms", "_metrics")

    def __init__(
        self,
        loss_norms: LossNorms,
        metrics: TrainMetrics,
        laps: Laps,
        blocks: BlockFigures | None,
    ) -> None:
        self._loss_norms, self._metrics = loss_norms, metrics
        self._laps, self._blocks = laps, blocks
        self._gradients: dict[str, Tensor] = {}
        self._before: Values = {}

    def forward_is_done(self, shares: Sequence[Tensor], outputs: Any, batch: Batch) -> None:
        """Measure the forward pass of a micro-batch, before its backward pass.

        Args:
            shares: What it adds to the mean of each loss, `()` each.
            outputs: What the network gives.
            batch: The micro-batch.
        """
        self._loss_norms.add(shares)
        self._metrics.add(outputs, batch)
        self._laps.mark("forward")

    def backward_is_done(self) -> None:
        """Measure the backward pass of a micro-batch."""
        self._laps.mark("backward")

    def before_update(self) -> None:
        """Keep gradient and weights of each block, if blocks are told."""
        if self._blocks is not None:
            self._gradients, self._before = self._blocks.gradients(), self._blocks.values()

    def update_is_done(self) -> None:
        """Measure the update."""
        self._laps.mark("update")

    def result(self) -> StepFigures:
        """Return the figures of the step."""
        return StepFigures(
            self._loss_norms.result(),
            self._metrics.result(),
            self._laps.seconds,
            self._gradients,
            # Only now the weights are those after the update.
            {} if self._blocks is None else self._blocks.ratios(self._before),
        )
