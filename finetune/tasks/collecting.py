"""Metrics that need all samples at once: correlations by rank, ranks among all samples."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.tasks.conditions import Condition


@dataclass(slots=True)
class CollectingMetric:
    """A metric that keeps what it is fed until its figure is asked for.

    Args:
        figure: Returns the figure, given what it was fed, each joined along the samples.
        new_condition: Makes the condition that decides whether the metric is defined.
        higher_is_better: Which way it improves.
    """

    figure: Callable[..., Tensor]
    new_condition: Callable[[], Condition]
    higher_is_better: bool
    _fed: list[tuple[Tensor, ...]] = field(default_factory=list)

    def update(self, *given: Tensor) -> None:
        """Add a batch: tensors with the samples on their first axis."""
        # On the CPU: all embeddings of a split may not fit beside the network on a GPU.
        self._fed.append(tuple(one.detach().float().cpu() for one in given))

    def compute(self) -> Tensor:
        """Return the figure of all batches.

        Raises:
            ValueError: there was no batch.
        """
        if not self._fed:
            raise ValueError("it has seen no sample")
        return self.figure(*(torch.cat(parts) for parts in zip(*self._fed, strict=True)))

    def reset(self) -> None:
        """Forget the batches."""
        self._fed.clear()
