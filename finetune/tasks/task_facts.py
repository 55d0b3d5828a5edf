"""What a task is built from beside its config."""

from collections.abc import Collection
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Classes, packages and device of a task."""

    classes: tuple[str, ...] | None
    """Names of classes or labels, in the order of the outputs; None without any."""
    trust: Collection[str]
    """Packages whose code may be imported."""
    device: torch.device
    """Device of outputs and targets; the metrics are kept there."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes or labels; empty without any."""
        return self.classes or ()
