"""Build the task that a config names."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import assert_never

import torch

from finetune.config.task_keys import (
    ClassificationTask,
    DetectionTask,
    ImportTask,
    MultilabelTask,
    RegressionTask,
    SegmentationTask,
    SimilarityTask,
    SpanTask,
    Task as SingleTask,
    TokenClassificationTask,
)
from finetune.config.task_list_keys import AnyTask, ListedTask, TaskList
from finetune.tasks.classification import classification
from finetune.tasks.detection import detection
from finetune.tasks.imported import imported
from finetune.tasks.multilabel import multilabel
from finetune.tasks.regression import regression
from finetune.tasks.segmentation import segmentation
from finetune.tasks.similarity import similarity
from finetune.tasks.span import span
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts, TrainingClasses, TrainingCounts
from finetune.tasks.task_list import list_of_tasks
from finetune.tasks.token_classification import token_classification


def build_task(
    config: AnyTask,
    *,
    classes: Sequence[str] | None,
    trust: Collection[str],
    device: torch.device,
    counts: TrainingCounts | None = None,
    outputs: Sequence[str] = (),
    by_target: Mapping[str, TrainingClasses] = MappingProxyType({}),
    is_calibrated: bool = False,
) -> Task:
    """Build the task of a config.

    Args:
        config: The task's node.
        classes: Names of classes or labels, in the order of the outputs.
        trust: Packages whose code may be imported.
        device: Device of outputs and targets; the metrics are kept there.
        counts: Training samples of each class, for losses that weigh by them.
        outputs: Names of the target columns, if there are several.
        by_target: Classes of each target of a list of tasks.
        is_calibrated: Whether a classification calibrates its probabilities by a temperature.

    Raises:
        FinetuneError: an imported task or loss has the wrong type, or all samples have one class.
    """
    # Each of them has its own column, so classes and counts come by target.
    if isinstance(config, TaskList):
        return list_of_tasks(config, partial(_listed, trust, device, by_target))
    names = None if classes is None else tuple(classes)
    facts = TaskFacts(names, trust, device, config.learns, counts, tuple(outputs), is_calibrated)
    return _single(config, facts)


def _listed(
    trust: Collection[str],
    device: torch.device,
    by_target: Mapping[str, TrainingClasses],
    config: ListedTask,
) -> Task:
    """Build one task of a list."""
    # A column of numbers has no classes, so it is not among them.
    known = by_target.get(config.target)
    names, counts = (None, None) if known is None else known
    return _single(config, TaskFacts(names, trust, device, config.learns, counts))


def _single(config: SingleTask, facts: TaskFacts) -> Task:  # noqa: C901 - one case for each task
    """Build a task that is no list."""
    match config:
        case ClassificationTask():
            return classification(config, facts)
        case MultilabelTask():
            return multilabel(config, facts)
        case TokenClassificationTask():
            return token_classification(config, facts)
        case RegressionTask():
            return regression(config, facts)
        case SegmentationTask():
            return segmentation(config, facts)
        case DetectionTask():
            return detection(config, facts)
        case SimilarityTask():
            return similarity(config, facts)
        case SpanTask():
            return span(config, facts)
        case ImportTask():
            return imported(config, facts)
        case _:
            assert_never(config)
