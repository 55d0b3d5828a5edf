"""Classification: one of several classes per sample, from logits `(B, C)` or one logit `(B, 1)`."""

from collections.abc import Sequence
from functools import partial
from typing import get_args

from torch import Tensor
from torch.nn import functional

from finetune.config.metric_keys import ClassificationMetric
from finetune.config.task_keys import ClassificationTask
from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.each_class import with_each_class
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import Feed, Metric, build_measures, target_of
from finetune.tasks.records import Asked, Prediction, Reader
from finetune.tasks.regression import read_numbers
from finetune.tasks.running_metrics import ClassScore, metric_of_classes
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.temperature import Temperature
from finetune.tasks.thresholds import Threshold
from finetune.tasks.torch_metrics import measure_of_classes
from finetune.tasks.unfit_outputs import misfit


def classification(config: ClassificationTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: all samples have one class.
    """
    classes, threshold = facts.names, None
    if facts.classes is not None and len(classes) < 2:
        raise FinetuneError(
            f"every sample is of the same class, {''.join(classes)!r}", key=("data", "target")
        )
    if config.threshold is not None:
        _refuse_threshold(config, classes)
        threshold = Threshold(classes, config.threshold, facts.device, is_of_classes=True)

    def named(metric: ClassificationMetric) -> Metric:
        # A ranking needs all outputs at once, so it has no running sums of our own.
        return _ranking(len(classes)) if metric == "auroc" else metric_of_classes(metric, classes)

    temperature = Temperature(classes) if facts.is_calibrated else None
    feed: Feed = partial(_as_classes, classes)
    feeds: dict[str, Feed] = {}
    if threshold is not None:
        # Only scores of decided classes depend on the threshold; a ranking keeps the logits.
        feeds = dict.fromkeys(get_args(ClassScore), partial(_as_decided, classes, threshold))
    measures = build_measures(
        config.metrics,
        named,
        facts,
        feed=feed,
        feeds=feeds,
        by_class=partial(measure_of_classes, facts, threshold),
    )
    return Task(
        build_losses(config.chosen_losses, facts),
        with_each_class(measures) if config.per_class else measures,
        _reader(config, classes, threshold, temperature),
        threshold=threshold,
        temperature=temperature,
    )


def _reader(
    config: ClassificationTask,
    classes: Sequence[str],
    threshold: Threshold | None,
    temperature: Temperature | None,
) -> Reader:
    """Return the reader of classes, or of embeddings as numbers where nothing else is learnt."""
    return (
        read_numbers
        if config.learns_embeddings
        else partial(read_classes, classes, threshold=threshold, temperature=temperature)
    )


def _refuse_threshold(config: ClassificationTask, classes: Sequence[str]) -> None:
    """Raise unless there are two classes, of which one has a probability and a threshold."""
    if config.learns_embeddings:
        raise FinetuneError(
            "threshold is for a probability, and the losses learn embeddings alone",
            hint="leave threshold out",
            key=("task", "threshold"),
        )
    if len(classes) != 2:
        raise FinetuneError(
            f"threshold is for two classes; there are {len(classes)}, of which the most probable "
            "one is predicted",
            hint="leave threshold out",
            key=("task", "threshold"),
        )


def _ranking(count: int) -> Metric:
    """Return the area under the ROC curve, a mean over `count` classes."""
    from torchmetrics import classification as of_classes  # see `imported_metric`

    return of_classes.MulticlassAUROC(num_classes=count, average="macro")


def _as_classes(classes: Sequence[str], outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and class numbers as a metric of classes takes them."""
    # Outputs may be of half precision, in which a figure would be rounded.
    return class_logits(outputs, classes).float(), target_of(batch)


def _as_decided(
    classes: Sequence[str], threshold: Threshold, outputs: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return answers by the threshold, as logits that are greatest there; and class numbers."""
    answers = threshold.second_class(class_logits(outputs, classes))
    return functional.one_hot(answers, 2).float(), target_of(batch)


def read_classes(
    classes: Sequence[str],
    outputs: Tensor,
    asked: Asked | None = None,
    *,
    threshold: Threshold | None = None,
    temperature: Temperature | None = None,
) -> list[Prediction]:
    """Return the class of each sample, from logits `(B, C)` or one logit for two classes.

    It is the most probable one, or the second of two from the threshold on. With a temperature the
    probabilities are calibrated.

    Raises:
        ModelError: there are not as many logits as classes.
    """
    try:
        logits = class_logits(outputs, classes)
        if logits.shape[1:] != (len(classes),):
            raise ValueError(f"{len(classes)} classes need as many outputs")
    except ValueError as error:
        raise misfit("a prediction", outputs, None, error) from error
    logits = logits.float()
    rows = (logits.softmax(-1) if temperature is None else temperature.shares(logits)).tolist()
    read = []
    for row, values in zip(rows, outputs.reshape(len(outputs), -1).tolist(), strict=True):
        # Of equal ones the first, which `argmax` takes in the metrics.
        best = max(range(len(row)), key=row.__getitem__)
        if threshold is not None:
            best = int(row[1] >= threshold.values[0])
        by_class = dict(zip(classes, row, strict=True))
        read.append(Prediction(classes[best], row[best], by_class, tuple(values)))
    return read
