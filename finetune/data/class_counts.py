"""Counts of the samples of each class in each part, and the notes on them.

Letters: N samples, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finetune.config.task import ClassificationTask, MultilabelTask, Task
from finetune.errors import named

_STRONG = 0.8
"""Share of the samples that always guessing the same gets right, from which on it is told."""


def class_counts(target: Tensor, num_classes: int) -> Tensor:
    """Return how many samples are of each class, `(C,)`.

    Args:
        target: Class numbers `(N,)`, or rows of 0 and 1 `(N, C)`.
        num_classes: C.
    """
    if target.ndim == 2:
        return target.long().sum(dim=0)
    return torch.bincount(target, minlength=num_classes)


def notes_on_classes(
    targets: Mapping[str, Tensor], classes: Sequence[str], task: Task
) -> list[str]:
    """Tell of classes that a part has no sample of, and of accuracy that guessing reaches.

    Args:
        targets: Those of each part.
        classes: Names of the classes.
        task: Which metrics are looked at.
    """
    notes = []
    for part, target in targets.items():
        counts = class_counts(target, len(classes)).tolist()
        absent = [name for name, count in zip(classes, counts, strict=True) if not count]
        if absent:
            noun = "label" if target.ndim == 2 else "class"
            which = f"{noun} {named(absent)}"
            if len(absent) > 1:
                plural = "labels" if target.ndim == 2 else "classes"
                which = f"{len(absent)} of {len(classes)} {plural}: {named(absent)}"
            notes.append(f"the {part} part has no sample of {which}")
    return notes + _notes_on_guessing(targets["train"], classes, task)


def _notes_on_guessing(target: Tensor, classes: Sequence[str], task: Task) -> list[str]:
    """Tell what accuracy the most frequent answer has, where no metric shows more than that."""
    if not isinstance(task, ClassificationTask | MultilabelTask) or task.metrics != ("accuracy",):
        return []
    counts = class_counts(target, len(classes))
    if target.ndim == 2:
        share = float(torch.maximum(counts, len(target) - counts).double().mean()) / len(target)
        what = "labels are what is usual for them"
    else:
        share = int(counts.max()) / len(target)
        what = f"training samples are of class {named([classes[int(counts.argmax())]])}"
    if share < _STRONG:
        return []
    return [
        f"{share:.1%} of the {what}: guessing that gives an accuracy of {share:.3f}; "
        "task.metrics: [accuracy, f1] shows more"
    ]
