"""Count the samples per class in each part, and write notes on classes that are rare or missing.

Letters: N samples, C classes.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.config.metric_keys import TorchMetric
from finetune.config.task_keys import Task
from finetune.errors import named

_STRONG = 0.8
"""Share of samples that one constant answer gets right, from which on a note is given."""


class Counted(NamedTuple):
    """How often the classes of a part are there.

    Args:
        counts: How often each is, `(C,)`.
        total: Number of samples, words or pixels.
        are_labels: Whether a sample has any number of them.
    """

    counts: Tensor
    total: int
    are_labels: bool

    @classmethod
    def of(cls, target: Tensor, num_classes: int) -> "Counted":
        """Count the classes in targets; for the arguments see `class_counts`."""
        return cls(class_counts(target, num_classes), len(target), target.ndim == 2)


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
    parts: Mapping[str, Counted],
    classes: Sequence[str],
    task: Task,
    *,
    looked_at: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return notes on classes that a part lacks, and on what a constant answer reaches.

    That is a class or label that all training samples have, else a high accuracy.

    Args:
        parts: The classes in each part: of its samples, words or pixels.
        classes: Names of the classes.
        task: The task, whose metrics decide whether accuracy needs a note.
        looked_at: Words for each part of which only some samples were counted.
    """
    notes, unit = [], _unit(task)
    for part, counted in parts.items():
        pairs = zip(classes, counted.counts.tolist(), strict=True)
        absent = [name for name, number in pairs if not number]
        if absent:
            noun = "label" if counted.are_labels else "class"
            which = f"{noun} {named(absent)}"
            if len(absent) > 1:
                plural = "labels" if counted.are_labels else "classes"
                which = f"{len(absent)} of {len(classes)} {plural}: {named(absent)}"
            where = f"the {part} part has no {unit} of"
            if part in looked_at:
                where = f"{looked_at[part]} have no {unit} of"
            notes.append(f"{where} {which}{_only_elsewhere(part, parts, unit)}")
    trained = parts["train"]
    # Whose classes are all the same needs no further note on accuracy.
    alike = _notes_on_sameness(trained, classes, unit, looked_at.get("train"))
    return [*notes, *(alike or _notes_on_guessing(trained, classes, task))]


def notes_on_constants(targets: Mapping[str, Tensor], name: str) -> list[str]:
    """Return a note for each part in which numbers of a target are the same for all samples.

    Args:
        targets: The targets `(N, ...)` of each part.
        name: Name of the target column.
    """
    notes = []
    for part, target in targets.items():
        if len(target) < 2 or not target.is_floating_point():
            continue
        numbers = target.reshape(len(target), -1)
        same = (numbers == numbers[0]).all(0)
        if not (count := int(same.sum())):
            continue
        # The digits that tell it from its neighbours: no 5.0999999 for 5.1, no 1.23457e+06.
        first = np.format_float_positional(numbers[0].numpy()[same.numpy()][0], trim="-")
        what = f"column {name!r} is {first}"
        if len(same) > 1:
            is_are = "is" if count == 1 else "are constant, the first is"
            what = f"{count} of {len(same)} numbers of column {name!r} {is_are} {first}"
        one = count == 1
        verdict = f"{'it measures' if one else 'they measure'} little"
        if part == "train":
            verdict = f"nothing can be learned from {'it' if one else 'them'}"
        notes.append(f"{what} in all {len(target):,} samples of the {part} part: {verdict}")
    return notes


def _notes_on_sameness(
    trained: Counted, classes: Sequence[str], unit: str, looked_at: str | None
) -> list[str]:
    """Return a note if all training samples have the same class, or have a label in common.

    Args:
        trained: The classes of the training part.
        classes: Names of the classes.
        unit: The word for what has one class.
        looked_at: Words for the samples that were counted; None if all of them were.
    """
    everywhere = [
        name
        for name, number in zip(classes, trained.counts.tolist(), strict=True)
        if number == trained.total and number > 1
    ]
    if not everywhere:
        return []
    noun = "label" if trained.are_labels else "class"
    if looked_at is not None:
        # Of the others nothing is known.
        return [f"all {trained.total:,} {unit}s of {looked_at} have {noun} {named(everywhere)}"]
    return [
        f"all {trained.total:,} training {unit}s have {noun} {named(everywhere)}: "
        f"nothing can be learned {'of it' if trained.are_labels else 'from them'}"
    ]


def _unit(task: Task) -> str:
    """Return the word for what has one class."""
    return {"tags": "word", "mask": "pixel"}.get(task.learns, "sample")


def _only_elsewhere(part: str, parts: Mapping[str, Counted], unit: str) -> str:
    """Return the words for classes that another part has and the training part has not."""
    if part != "train" or unit == "sample":
        return ""  # of samples this is an error, raised before
    there = {
        name: int(counted.counts[parts["train"].counts == 0].sum())
        for name, counted in parts.items()
        if name != "train"
    }
    told = [
        f"{name} has {'once' if number == 1 else f'{number:,} times'}"
        for name, number in there.items()
        if number
    ]
    return f", which {' and '.join(told)}" if told else ""


def _notes_on_guessing(trained: Counted, classes: Sequence[str], task: Task) -> list[str]:
    """Return a note if a constant answer has high accuracy and no other metric would show that."""
    metrics, (counts, total, are_labels) = getattr(task, "metrics", ()), trained
    # Any other metric, such as f1, shows a constant answer by itself.
    if not total or not metrics or not all(_hides_guessing(metric, task) for metric in metrics):
        return []
    if are_labels:
        share = float(torch.maximum(counts, total - counts).double().mean()) / total
        what = "labels are what is usual for them"
    else:
        share = int(counts.max()) / total
        what = f"training {_unit(task)}s are of class {named([classes[int(counts.argmax())]])}"
    # Below that, accuracy itself shows that nothing was learned.
    if share < _STRONG:
        return []
    better = "pixel_accuracy, mean_iou" if task.learns == "mask" else "accuracy, f1"
    return [
        f"{share:.1%} of the {what}: guessing that gives an accuracy of {share:.3f}; "
        f"task.metrics: [{better}] shows more"
    ]


def _hides_guessing(metric: object, task: Task) -> bool:
    """Tell whether a metric is high for a constant answer where one class is frequent."""
    if not isinstance(metric, TorchMetric):
        return metric in ("accuracy", "pixel_accuracy")
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
