"""Multilabel: any number of labels per sample, from logits `(B, C)`."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from finetune.config.metric_keys import ClassificationMetric
from finetune.config.task_keys import MultilabelTask
from finetune.data.batches import Batch
from finetune.tasks.each_class import with_each_class
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import Metric, build_measures, target_of
from finetune.tasks.records import Asked, Prediction
from finetune.tasks.running_metrics import metric_of_labels
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.thresholds import Threshold
from finetune.tasks.torch_metrics import measure_of_labels
from finetune.tasks.unfit_outputs import misfit, one_tensor


def multilabel(config: MultilabelTask, facts: TaskFacts) -> Task:
    """Build the task."""
    labels = facts.names
    threshold = Threshold(labels, config.threshold, facts.device, is_of_classes=False)

    def named(metric: ClassificationMetric) -> Metric:
        # A ranking needs all outputs at once, so it has no running sums of our own.
        if metric == "auroc":
            return _ranking(len(labels))
        return metric_of_labels(metric, labels, threshold.is_reached)

    measures = build_measures(
        config.metrics,
        named,
        facts,
        feed=_as_one_label if len(labels) == 1 else _as_labels,
        by_class=partial(measure_of_labels, facts, threshold),
    )
    return Task(
        build_losses(config.chosen_losses, facts),
        with_each_class(measures) if config.per_class else measures,
        partial(_read, labels, threshold),
        threshold=threshold,
    )


def _ranking(count: int) -> Metric:
    """Return the area under the ROC curve, a mean over `count` labels."""
    from torchmetrics import classification as of_classes  # see `imported_metric`

    # torchmetrics refuses one label among "multilabel": the mean over one is that of "binary"
    if count == 1:
        return of_classes.BinaryAUROC()
    return of_classes.MultilabelAUROC(num_labels=count, average="macro")


def _as_labels(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and multi-hot targets as a metric of labels takes them."""
    return outputs.float(), target_of(batch).long()


def _as_one_label(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and targets of a single label, both `(B,)`."""
    return outputs.float().flatten(), target_of(batch).long().flatten()


def _read(
    classes: Sequence[str], threshold: Threshold, outputs: Tensor, asked: Asked | None = None
) -> list[Prediction]:
    """Return the labels of each sample, from logits `(B, C)`.

    Raises:
        ModelError: there are not as many logits as labels.
    """
    try:
        outputs = one_tensor(outputs)
        outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape[1] != len(classes):
            raise ValueError(f"{len(classes)} labels need as many outputs")
    except ValueError as error:
        raise misfit("a prediction", outputs, None, error) from error
    rows = outputs.float().sigmoid().tolist()
    read = []
    for row, values in zip(rows, outputs.tolist(), strict=True):
        by_class = dict(zip(classes, row, strict=True))
        # The same comparison as in the metrics, so that both agree on a probability at the
        # threshold.
        reached = zip(by_class.items(), threshold.values, strict=True)
        given = tuple(name for (name, share), least in reached if share >= least)
        read.append(Prediction(given, None, by_class, tuple(values)))
    return read
