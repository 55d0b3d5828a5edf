"""What a task is built from beside its config."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch

from finetune.config.task_base import TargetForm


class TrainingCounts(NamedTuple):
    """How many training samples there are."""

    samples: int
    by_class: tuple[int, ...]
    """Of each class, or with each label, in the order of the outputs. A class of words or tags is
    counted as often as it occurs."""


class TrainingClasses(NamedTuple):
    """The classes of one target, and how often they occur in the training samples."""

    names: tuple[str, ...]
    counts: TrainingCounts


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Classes, packages and device of a task."""

    classes: tuple[str, ...] | None
    """Names of classes or labels, in the order of the outputs; None without any."""
    trust: Collection[str]
    """Packages whose code may be imported."""
    device: torch.device
    """Device of outputs and targets; the metrics are kept there."""
    learns: TargetForm = "any"
    """Form of the target."""
    counts: TrainingCounts | None = None
    """Training samples of each class; None without classes, and where nobody has counted them."""
    outputs: tuple[str, ...] = ()
    """Names of the target columns, if the config names several; one output each."""
    is_calibrated: bool = False
    """Whether probabilities of classes are to be calibrated by a temperature."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes or labels; empty without any."""
        return self.classes or ()
