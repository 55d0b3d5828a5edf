"""Tasks: losses per sample, metrics, and how outputs become predictions.

Shapes: B samples, C classes or labels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import torch
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
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import call_trusted
from finetune.models.shapes import describe
from finetune.tasks.metrics import (
    Directions,
    Feed,
    Measure,
    build_measures,
    imported_metric,
    measure_of,
    misfit,
)

LossFunction = Callable[[Any, Batch], Tensor]
"""Function of outputs and batch that returns the loss of each sample, `(B,)`."""


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """One of the losses of a task, with its weight in their sum."""

    name: str
    weight: float
    function: LossFunction
    whole_window: bool = False
    """Whether it compares the samples of a window, so that no window may be cut."""
    takes_shares: bool = True
    """Whether its targets may be shares of classes `(B, C)` in place of class numbers."""

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the weighted losses of the samples, `(B,)`.

        A loss with `whole_window` may give one number: each sample gets it, so their mean is it.

        Raises:
            ModelError: the network's outputs do not fit the targets, or the loss is not one
                number per sample.
        """
        try:
            losses = self.function(outputs, batch)
        except (RuntimeError, IndexError, ValueError) as error:
            raise misfit(f"loss {self.name!r}", outputs, batch.target, error) from error
        is_one = isinstance(losses, Tensor) and losses.numel() == 1
        if is_one and self.whole_window:
            losses = losses.reshape(1).expand(len(batch))
        if not isinstance(losses, Tensor) or losses.shape != (len(batch),):
            raise ModelError(
                f"loss {self.name!r} gives {describe(losses)}, needs one number per sample "
                f"({len(batch)},)",
                hint=_ONE_NUMBER if is_one else None,
                key=("task",),
            )
        return losses if self.weight == 1 else losses * self.weight


_ONE_NUMBER = (
    "a mean over the samples is taken here, so give each its own (reduction='none'); a loss that "
    "compares samples has the attribute whole_window = True, and gives one number"
)
"""Hint for a loss that is one number."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one sample."""

    label: str | tuple[str, ...] | None
    """The class, or all labels predicted; None for numbers."""
    probability: float | None
    """Probability of the class; None for labels and numbers."""
    probabilities: dict[str, float]
    """Probability of every class or label; empty for numbers."""
    values: tuple[float, ...]
    """The outputs themselves, flattened."""


@dataclass(frozen=True, slots=True)
class Task:
    """Losses and metrics of a run, and the function that reads predictions from outputs."""

    losses: tuple[WeightedLoss, ...]
    metrics: tuple[Measure, ...]
    classes: tuple[str, ...] | None
    readout: Callable[[Any], list[Prediction]]

    @property
    def directions(self) -> Directions:
        """Which way the figures of the validation samples improve."""
        return Directions.of(self.metrics)

    @property
    def whole_window_losses(self) -> tuple[str, ...]:
        """Names of the losses that need whole windows."""
        return tuple(loss.name for loss in self.losses if loss.whole_window)

    @property
    def hard_losses(self) -> tuple[str, ...]:
        """Names of the losses that may take class numbers only, no shares of classes."""
        return tuple(loss.name for loss in self.losses if not loss.takes_shares)

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
        for metric in self.metrics:
            metric.update(outputs, batch)

    def compute_metrics(
        self, left_out: dict[str, str] | None = None, *, is_finite: bool = True
    ) -> dict[str, float]:
        """Return every metric that is defined on its batches, and reset all of them.

        Args:
            left_out: Receives, by metric, why it is not defined.
            is_finite: Whether the outputs were finite, so that NaN comes from a metric.
        """
        figures: dict[str, float] = {}
        for metric in self.metrics:
            figure, fault = metric.compute(is_finite=is_finite)
            if figure is not None:
                figures[metric.name] = figure
            elif left_out is not None and fault is not None:
                left_out[metric.name] = fault
        self.reset_metrics()
        return figures

    def reset_metrics(self) -> None:
        """Reset all metrics."""
        for metric in self.metrics:
            metric.reset()


def add_up(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the parts of a loss, all of one shape."""
    # Not from 0, which `sum` begins with: that is one more operation in the graph.
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
        device: Device of outputs and targets; the metrics are kept there.

    Raises:
        FinetuneError: an imported task or loss has the wrong type, or all samples have one class.
    """
    names = tuple(classes) if classes is not None else None
    if isinstance(config, ClassificationTask) and names is not None and len(names) < 2:
        raise FinetuneError(
            f"every sample is of the same class, {''.join(names)!r}", key=("data", "target")
        )
    if isinstance(config, ImportTask):
        return _imported_task(config, names, trust, device)
    losses = tuple(
        _weighted(loss, _loss_function(loss, number, names, trust))
        for number, loss in enumerate(config.losses or (_usual_loss(config),))
    )
    readout: Callable[[Any], list[Prediction]]
    feed: Feed
    match config:
        case ClassificationTask():
            readout, feed = partial(_read_class, names or ()), partial(_as_classes, names or ())
        case MultilabelTask(threshold=threshold):
            readout = partial(_read_labels, names or (), threshold)
            feed = _as_one_label if names is not None and len(names) == 1 else _as_labels
        case RegressionTask():
            readout, feed = _read_numbers, _as_columns
        case _:
            assert_never(config)
    metrics = build_measures(config, names=names, feed=feed, trust=trust, device=device)
    return Task(losses, metrics, names, readout)


def _weighted(config: Loss, function: LossFunction) -> WeightedLoss:
    """Return a loss with name and weight of its config."""
    own = (function,) if isinstance(config, ImportLoss) else ()
    takes_shares = not own or _says(own, "soft_targets")
    name = config.name or config.type
    return WeightedLoss(name, config.weight, function, _says(own, "whole_window"), takes_shares)


def _says(own: Sequence[object], attribute: str) -> bool:
    """Tell whether a loss or task of the user has an attribute that is true."""
    return any(bool(getattr(one, attribute, False)) for one in own)


def _usual_loss(config: ClassificationTask | MultilabelTask | RegressionTask) -> Loss:
    """Return the loss of a task whose config names none."""
    match config:
        case ClassificationTask():
            return CrossEntropyLoss(type="cross_entropy")
        case MultilabelTask():
            return BinaryCrossEntropyLoss(type="binary_cross_entropy")
        case RegressionTask():
            return MseLoss(type="mse")
        case _:
            assert_never(config)


def _loss_function(
    config: Loss, number: int, names: tuple[str, ...] | None, trust: Collection[str]
) -> LossFunction:
    """Return the function of a loss; `number` is its place in the config."""
    match config:
        case CrossEntropyLoss(label_smoothing=smoothing):
            return _against_target(partial(_cross_entropy, names or (), smoothing))
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
    """Build a loss of the user; raise if it cannot be called."""
    made = call_trusted(path, args, trust, key=key)
    if not callable(made):
        raise FinetuneError(
            f"{path!r} returned {type(made).__name__}; expected a callable (outputs, batch)",
            key=(*key, "path"),
        )
    function: LossFunction = made
    return function


def _against_target(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Return a loss that calls `function` with the outputs and the target of the batch."""

    def losses(outputs: Tensor, batch: Batch) -> Tensor:
        if batch.target is None:
            raise ValueError("there are no targets")
        return function(outputs, batch.target)

    return losses


def _cross_entropy(
    classes: Sequence[str], smoothing: float, outputs: Tensor, target: Tensor
) -> Tensor:
    """Return the cross entropy of each sample; raise if there are not as many logits as classes."""
    logits = _class_logits(outputs, classes)
    # torch would take more outputs than classes without an error.
    if classes and logits.ndim > 1 and logits.shape[1] != len(classes):
        raise ValueError(f"{len(classes)} classes need as many outputs")
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)


def _per_sample(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Return a loss that takes the mean of `function` over all axes but the first."""

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        if {*outputs.shape[1:], *target.shape[1:]} <= {1}:
            # (B,) and (B, 1) are both one number per sample: torch would broadcast them to (B, B).
            # Class numbers become floats.
            outputs, target = outputs.flatten(), target.flatten().to(outputs.dtype)
        if outputs.shape != target.shape:
            raise ValueError("outputs and targets differ in shape")
        return (
            function(outputs, target).flatten(1).mean(1)
            if outputs.ndim > 1
            else function(outputs, target)
        )

    return _against_target(losses)


def _class_logits(outputs: Tensor, classes: Sequence[str]) -> Tensor:
    """Return one logit for each class `(B, C)`.

    A single logit `z` `(B, 1)` or `(B,)` for two classes is that of the second: the pair `(0, z)`
    has its loss, for `softmax(0, z)` is `(1 - sigmoid(z), sigmoid(z))`.
    """
    if len(classes) == 2 and set(outputs.shape[1:]) <= {1}:
        logit = outputs.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
    return outputs


def _as_classes(classes: Sequence[str], outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and class numbers as a metric of classes takes them."""
    # Outputs may be of half precision, in which a figure would be rounded.
    return _class_logits(outputs, classes).float(), target


def _as_labels(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and multi-hot targets as a metric of labels takes them."""
    return outputs.float(), target.long()


def _as_one_label(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets of a single label, both `(B,)`."""
    return outputs.float().flatten(), target.long().flatten()


def _as_columns(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers and targets, both flattened."""
    return outputs.float().flatten(), target.float().flatten()


def _read_class(classes: Sequence[str], outputs: Tensor) -> list[Prediction]:
    """Return the class of each sample, from logits `(B, C)` or one logit for two classes."""
    rows = _class_logits(outputs, classes).float().softmax(-1).tolist()
    read = []
    for row, values in zip(rows, outputs.reshape(len(outputs), -1).tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        by_class = dict(zip(classes, row, strict=True))
        read.append(Prediction(classes[best], row[best], by_class, tuple(values)))
    return read


def _read_labels(classes: Sequence[str], threshold: float, outputs: Tensor) -> list[Prediction]:
    """Return the labels of each sample, from logits `(B, C)`."""
    outputs = outputs.reshape(len(outputs), -1)
    rows = outputs.float().sigmoid().tolist()
    read = []
    for row, values in zip(rows, outputs.tolist(), strict=True):
        by_class = dict(zip(classes, row, strict=True))
        # The same comparison as in the metrics, so that both agree on a probability at the
        # threshold.
        given = tuple(name for name, share in by_class.items() if share >= threshold)
        read.append(Prediction(given, None, by_class, tuple(values)))
    return read


def _read_numbers(outputs: Any) -> list[Prediction]:
    """Return outputs `(B, ...)` as plain numbers per sample."""
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the network gives {describe(outputs)}, which cannot be read as numbers",
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
    """Build a task of the user: an object with `loss`, and `metrics` if it has any."""
    made = call_trusted(config.path, config.args, trust, key=("task",))
    function, metrics = getattr(made, "loss", None), getattr(made, "metrics", {})
    if not callable(function) or not isinstance(metrics, Mapping):
        raise FinetuneError(
            f"{config.path!r} returns {type(made).__name__!r}, which needs a method "
            "'loss(outputs, batch)' and a mapping 'metrics'",
            key=("task", "path"),
        )
    own = {name: imported_metric(name, metric, ("task",)) for name, metric in metrics.items()}
    # A direction without its metric would take no effect, so it is an error.
    if strange := sorted(set(config.better) - set(metrics)):
        known = ", ".join(repr(name) for name in metrics) or "none"
        raise FinetuneError(
            f"the task has no metric {strange[0]!r}; there are: {known}", key=("task", "better")
        )
    # The task or its loss may say so.
    is_whole, takes_shares = (_says((made, function), n) for n in ("whole_window", "soft_targets"))
    return Task(
        losses=(WeightedLoss("loss", 1.0, function, is_whole, takes_shares),),
        metrics=tuple(
            measure_of(
                name,
                metric,
                config.better.get(name),
                names=classes,
                # The user's metrics take what the network gives as it is.
                feed=lambda outputs, target: (outputs, target),
                device=device,
            )
            for name, metric in own.items()
        ),
        classes=classes,
        readout=partial(_read_class, classes) if classes else _read_numbers,
    )
