"""Count the samples per class in each part, and write notes on classes that are rare or missing.

Letters: N samples, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finetune.config.metric_keys import TorchMetric
from finetune.config.task_keys import Task
from finetune.errors import named

_STRONG = 0.8
"""Share of samples that one constant answer gets right, from which on a note is given."""


def class_counts(target: Tensor, num_classes: int) -> Tensor:
    """Return the number of samples of each class, `(C,)`.

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
    """Return notes on classes that a part lacks, and on accuracy that a constant answer reaches.

    Args:
        targets: The targets of each part.
        classes: Names of the classes.
        task: The task, whose metrics decide whether accuracy needs a note.
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
    """Return a note if a constant answer has high accuracy and no other metric would show that."""
    metrics = getattr(task, "metrics", ())
    # Any other metric, such as f1, shows a constant answer by itself.
    if not metrics or not all(_hides_guessing(metric, task) for metric in metrics):
        return []
    counts = class_counts(target, len(classes))
    if target.ndim == 2:
        share = float(torch.maximum(counts, len(target) - counts).double().mean()) / len(target)
        what = "labels are what is usual for them"
    else:
        share = int(counts.max()) / len(target)
        what = f"training samples are of class {named([classes[int(counts.argmax())]])}"
    # Below that, accuracy itself shows that nothing was learned.
    if share < _STRONG:
        return []
    return [
        f"{share:.1%} of the {what}: guessing that gives an accuracy of {share:.3f}; "
        "task.metrics: [accuracy, f1] shows more"
    ]


def _hides_guessing(metric: object, task: Task) -> bool:
    """Tell whether a metric is high for a constant answer where one class is frequent."""
    if not isinstance(metric, TorchMetric):
        return metric == "accuracy"
    kind = metric.type.removeprefix("Binary")
    if kind in _COUNT_RIGHT_ANSWERS and (kind != metric.type or task.type == "multilabel"):
        return True
    if kind != metric.type or task.type == "multilabel":
        return False
    # Over all samples alike, or by the size of the classes; torchmetrics' default is `macro`.
    averages = ("micro", "weighted")
    is_by_size = metric.arguments.get("average", "macro") in averages
    return is_by_size and kind in _COUNT_RIGHT_ANSWERS | _SCORES


_COUNT_RIGHT_ANSWERS = frozenset({"Accuracy", "HammingDistance", "ExactMatch"})
"""Metrics in which a right answer counts alike for a frequent and a rare class."""
_SCORES = frozenset({"F1Score", "FBetaScore", "Precision", "Recall", "JaccardIndex"})
"""Metrics that do so if their average goes by the size of the classes."""
