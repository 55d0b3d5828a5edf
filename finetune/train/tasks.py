"""Tasks: per-sample losses, metrics, and what the network's outputs mean.

Shapes: B samples, C classes or labels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F

from finetune.config.task import (
    BinaryCrossEntropyLoss,
    ClassificationTask,
    CrossEntropyLoss,
    HuberLoss,
    ImportLoss,
    ImportTask,
    L1Loss,
    Loss,
    MseLoss,
    MultilabelTask,
    RegressionTask,
    Task as TaskConfig,
)
from finetune.data.loader import Batch
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import call_trusted

LossFunction = Callable[[Any, Batch], Tensor]
"""Outputs and batch to per-sample losses `(B,)`."""


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """One of the losses whose sum is trained on."""

    name: str
    weight: float
    function: LossFunction

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the weighted losses of the samples, `(B,)`.

        Raises:
            ModelError: the network's outputs do not fit the targets, or the loss is not one
                number per sample.
        """
        try:
            losses = self.function(outputs, batch)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelError(
                f"loss {self.name!r} cannot take {_shape(outputs)} with targets "
                f"{_shape(batch.target)}: {_first_line(error)}",
                hint="the last layer must give what the task learns",
                key=("model", "layers"),
            ) from error
        if not isinstance(losses, Tensor) or losses.shape != (len(batch),):
            raise ModelError(
                f"loss {self.name!r} gives {_shape(losses)}, needs one number per sample "
                f"({len(batch)},)",
                key=("task",),
            )
        return losses if self.weight == 1 else losses * self.weight


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one sample."""

    label: str | tuple[str, ...] | None
    """The class, or all labels given; None for numbers."""
    probability: float | None
    """Probability of the class; None where there is not exactly one."""
    probabilities: dict[str, float]
    """Probability of every class or label; empty for numbers."""
    values: tuple[float, ...]
    """The outputs themselves, flattened."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned: losses, metrics, and how outputs are read."""

    losses: tuple[WeightedLoss, ...]
    metrics: Mapping[str, torchmetrics.Metric]
    classes: tuple[str, ...] | None
    readout: Callable[[Any], list[Prediction]]
    feed: Callable[[Any, Tensor], tuple[Any, Tensor]]
    """Outputs and target as the metrics take them."""

    def parts(self, outputs: Any, batch: Batch) -> list[Tensor]:
        """Return the weighted losses of the samples `(B,)`, one tensor for each loss."""
        return [loss(outputs, batch) for loss in self.losses]

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the losses of the samples `(B,)`, summed over all losses by weight."""
        return add_up(self.parts(outputs, batch))

    def update_metrics(self, outputs: Any, batch: Batch) -> None:
        """Add a batch to every metric.

        Raises:
            ModelError: a metric cannot take what the network gives.
        """
        if batch.target is None:
            return
        fed, target = self.feed(outputs, batch.target)
        for name, metric in self.metrics.items():
            try:
                metric.update(fed, target)
            except (ValueError, RuntimeError, IndexError) as error:
                raise ModelError(
                    f"metric {name!r} cannot take {_shape(fed)} with targets {_shape(target)}: "
                    f"{_first_line(error)}",
                    hint="the last layer must give what the task learns",
                    key=("model", "layers"),
                ) from error

    def compute_metrics(self) -> dict[str, float]:
        """Return every metric over what it was fed, and start afresh."""
        figures = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        self.reset_metrics()
        return figures

    def reset_metrics(self) -> None:
        """Forget what the metrics were fed."""
        for metric in self.metrics.values():
            metric.reset()


def add_up(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the parts of a loss, all of one shape."""
    return sum(parts[1:], start=parts[0])


def build_task(
    config: TaskConfig,
    *,
    classes: Sequence[str] | None,
    trust: Collection[str],
    device: torch.device,
) -> Task:
    """Build the task of a config.

    Args:
        config: The task's node.
        classes: Names of classes or labels, in the order of the outputs.
        trust: Packages whose code may be imported.
        device: Where outputs and targets will be; the metrics are kept there.

    Raises:
        FinetuneError: an imported task or loss is not what it must be.
    """
    names = tuple(classes) if classes is not None else None
    if isinstance(config, ClassificationTask) and names is not None and len(names) < 2:
        raise FinetuneError(
            f"every sample is of the same class, {''.join(names)!r}", key=("data", "target")
        )
    if isinstance(config, ImportTask):
        return _imported_task(config, names, trust, device)
    losses = tuple(
        WeightedLoss(loss.name or loss.type, loss.weight, _loss_function(loss, number, trust))
        for number, loss in enumerate(config.losses or (_usual_loss(config),))
    )
    metrics: dict[str, torchmetrics.Metric] = {}
    for name in config.metrics:
        metrics[name] = _metric(config, name, len(names or ())).to(device)
    readout: Callable[[Any], list[Prediction]]
    match config:
        case ClassificationTask():
            readout, feed = partial(_read_class, names or ()), _as_they_are
        case MultilabelTask(threshold=threshold):
            readout, feed = partial(_read_labels, names or (), threshold), _as_labels
        case RegressionTask():
            readout, feed = _read_numbers, _as_columns
        case _:
            assert_never(config)
    return Task(losses, metrics, names, readout, feed)


def _usual_loss(config: ClassificationTask | MultilabelTask | RegressionTask) -> Loss:
    match config:
        case ClassificationTask():
            return CrossEntropyLoss(type="cross_entropy")
        case MultilabelTask():
            return BinaryCrossEntropyLoss(type="binary_cross_entropy")
        case RegressionTask():
            return MseLoss(type="mse")
        case _:
            assert_never(config)


def _loss_function(config: Loss, number: int, trust: Collection[str]) -> LossFunction:
    match config:
        case CrossEntropyLoss(label_smoothing=smoothing):
            return _against_target(
                partial(F.cross_entropy, reduction="none", label_smoothing=smoothing)
            )
        case BinaryCrossEntropyLoss():
            return _per_sample(partial(F.binary_cross_entropy_with_logits, reduction="none"))
        case MseLoss():
            return _per_sample(partial(F.mse_loss, reduction="none"))
        case L1Loss():
            return _per_sample(partial(F.l1_loss, reduction="none"))
        case HuberLoss(delta=delta):
            return _per_sample(partial(F.huber_loss, reduction="none", delta=delta))
        case ImportLoss(path=path, args=args):
            return _imported_loss(path, args, trust, ("task", "losses", number))
        case _:
            assert_never(config)


def _imported_loss(
    path: str, args: Mapping[str, Any], trust: Collection[str], key: Key
) -> LossFunction:
    made = call_trusted(path, args, trust, key=key)
    if not callable(made):
        raise FinetuneError(
            f"{path!r} returned {type(made).__name__}; expected a callable (outputs, batch)",
            key=(*key, "path"),
        )
    function: LossFunction = made
    return function


def _against_target(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Hand a function of outputs and targets the target of the batch."""

    def losses(outputs: Tensor, batch: Batch) -> Tensor:
        if batch.target is None:
            raise ValueError("there are no targets")
        return function(outputs, batch.target)

    return losses


def _per_sample(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Take the mean over all but the first axis."""

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.shape != target.shape:
            raise ValueError("outputs and targets differ in shape")
        return (
            function(outputs, target).flatten(1).mean(1)
            if outputs.ndim > 1
            else function(outputs, target)
        )

    return _against_target(losses)


def _metric(
    config: ClassificationTask | MultilabelTask | RegressionTask, name: str, num_classes: int
) -> torchmetrics.Metric:
    if isinstance(config, RegressionTask):
        return _regression_metric(name)
    kinds: dict[str, Callable[..., Any]] = {
        "accuracy": torchmetrics.Accuracy,
        "f1": torchmetrics.F1Score,
        "precision": torchmetrics.Precision,
        "recall": torchmetrics.Recall,
        "auroc": torchmetrics.AUROC,
    }
    settings: dict[str, Any]
    if isinstance(config, MultilabelTask):
        settings = {"task": "multilabel", "num_labels": num_classes, "average": "macro"}
        if name != "auroc":
            settings["threshold"] = config.threshold
    else:
        average = "micro" if name == "accuracy" else "macro"
        settings = {"task": "multiclass", "num_classes": num_classes, "average": average}
    made: torchmetrics.Metric = kinds[name](**settings)
    return made


def _regression_metric(name: str) -> torchmetrics.Metric:
    match name:
        case "mse":
            return torchmetrics.MeanSquaredError()
        case "rmse":
            return torchmetrics.MeanSquaredError(squared=False)
        case "mae":
            return torchmetrics.MeanAbsoluteError()
        case _:
            return torchmetrics.R2Score()


def _as_they_are(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.float(), target


def _as_labels(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.float(), target.long()


def _as_columns(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.float().flatten(), target.float().flatten()


def _read_class(classes: Sequence[str], outputs: Tensor) -> list[Prediction]:
    """Read logits `(B, C)` as one class each."""
    rows = outputs.float().softmax(-1).tolist()
    read = []
    for row, values in zip(rows, outputs.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        by_class = dict(zip(classes, row, strict=True))
        read.append(Prediction(classes[best], row[best], by_class, tuple(values)))
    return read


def _read_labels(classes: Sequence[str], threshold: float, outputs: Tensor) -> list[Prediction]:
    """Read logits `(B, C)` as any number of labels each."""
    rows = outputs.float().sigmoid().tolist()
    read = []
    for row, values in zip(rows, outputs.tolist(), strict=True):
        by_class = dict(zip(classes, row, strict=True))
        given = tuple(name for name, share in by_class.items() if share >= threshold)
        read.append(Prediction(given, None, by_class, tuple(values)))
    return read


def _read_numbers(outputs: Any) -> list[Prediction]:
    """Read outputs `(B, ...)` as plain numbers."""
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the network gives {_shape(outputs)}, which cannot be read as numbers",
            key=("model", "layers"),
        )
    rows = outputs.float().reshape(len(outputs), -1).tolist()
    return [Prediction(None, None, {}, tuple(row)) for row in rows]


def _imported_task(
    config: ImportTask,
    classes: tuple[str, ...] | None,
    trust: Collection[str],
    device: torch.device,
) -> Task:
    made = call_trusted(config.path, config.args, trust, key=("task",))
    function, metrics = getattr(made, "loss", None), getattr(made, "metrics", {})
    if not callable(function) or not isinstance(metrics, Mapping):
        raise FinetuneError(
            f"{config.path!r} returns {type(made).__name__!r}, which needs a method "
            "'loss(outputs, batch)' and a mapping 'metrics'",
            key=("task", "path"),
        )
    for name, metric in metrics.items():
        if not isinstance(metric, torchmetrics.Metric):
            raise FinetuneError(
                f"metric {name!r} is {type(metric).__name__}, needs a torchmetrics.Metric",
                key=("task", "path"),
            )
    readout = partial(_read_class, classes) if classes else _read_numbers
    return Task(
        losses=(WeightedLoss("loss", 1.0, function),),
        metrics={name: metric.to(device) for name, metric in metrics.items()},
        classes=classes,
        readout=readout,
        feed=lambda outputs, target: (outputs, target),
    )


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "none" if value is None else type(value).__name__


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
