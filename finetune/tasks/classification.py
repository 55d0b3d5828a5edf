"""Classification: one of several classes per sample, from logits `(B, C)` or one logit `(B, 1)`."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from finetune.config.metric_keys import ClassificationMetric
from finetune.config.task_keys import ClassificationTask
from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import Metric, build_measures, target_of
from finetune.tasks.records import Asked, Prediction
from finetune.tasks.running_metrics import metric_of_classes
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts


def classification(config: ClassificationTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: all samples have one class.
    """
    classes = facts.names
    if facts.classes is not None and len(classes) < 2:
        raise FinetuneError(
            f"every sample is of the same class, {''.join(classes)!r}", key=("data", "target")
        )

    def named(metric: ClassificationMetric) -> Metric:
        # A ranking needs all outputs at once, so it has no running sums of our own.
        return _ranking(len(classes)) if metric == "auroc" else metric_of_classes(metric, classes)

    return Task(
        build_losses(config.chosen_losses, facts),
        build_measures(config.metrics, named, facts, feed=partial(_as_classes, classes)),
        partial(read_classes, classes),
    )


def _ranking(count: int) -> Metric:
    """Return the area under the ROC curve, a mean over `count` classes."""
    from torchmetrics import classification as of_classes  # see `imported_metric`

    return of_classes.MulticlassAUROC(num_classes=count, average="macro")


def _as_classes(classes: Sequence[str], outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and class numbers as a metric of classes takes them."""
    # Outputs may be of half precision, in which a figure would be rounded.
    return class_logits(outputs, classes).float(), target_of(batch)


def read_classes(
    classes: Sequence[str], outputs: Tensor, asked: Asked | None = None
) -> list[Prediction]:
    """Return the class of each sample, from logits `(B, C)` or one logit for two classes."""
    rows = class_logits(outputs, classes).float().softmax(-1).tolist()
    read = []
    for row, values in zip(rows, outputs.reshape(len(outputs), -1).tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        by_class = dict(zip(classes, row, strict=True))
        read.append(Prediction(classes[best], row[best], by_class, tuple(values)))
    return read
