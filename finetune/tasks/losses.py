"""Build the losses of a config. Letters: B samples, C classes or labels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config.loss_keys import (
    BinaryCrossEntropyLoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    HuberLoss,
    ImportLoss,
    InBatchNegativesLoss,
    L1Loss,
    Loss,
    MseLoss,
    TripletLoss,
)
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key
from finetune.importing import call_trusted
from finetune.tasks.class_weights import weights_of_classes, weights_of_labels
from finetune.tasks.cross_entropies import (
    binary_cross_entropy,
    cross_entropy,
    fitting_logits,
    weight_of,
)
from finetune.tasks.distances import contrastive, triplet
from finetune.tasks.focal import focal_of_classes, focal_of_labels
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import one_tensor
from finetune.tasks.weighted_loss import Counter, LossFunction, WeightedLoss


def build_losses(configs: Sequence[Loss], facts: TaskFacts) -> tuple[WeightedLoss, ...]:
    """Build the losses of a task.

    Args:
        configs: Their nodes.
        facts: What the task is built from.

    Raises:
        FinetuneError: an imported loss cannot be called, weights do not fit the classes, or a loss
            does not suit what the task learns.
    """
    return tuple(build_loss(config, facts, number) for number, config in enumerate(configs))


def build_loss(config: Loss, facts: TaskFacts, number: int) -> WeightedLoss:
    """Build one loss; `number` is its place in the config.

    Raises:
        FinetuneError: see `build_losses`.
    """
    function: LossFunction
    key = ("task", "losses", number)
    made = partial(WeightedLoss, config.label, config.weight)
    match config:
        case CrossEntropyLoss(label_smoothing=smoothing, class_weights=written):
            weights = weights_of_classes(written, facts, (*key, "class_weights"))
            function = against_target(partial(cross_entropy, facts.names, smoothing, weights))
            # A weighted mean is divided by the sum of weights, as in `torch.nn.CrossEntropyLoss`.
            return made(function, count=len if weights is None else partial(weight_of, weights))
        case BinaryCrossEntropyLoss():
            function = _per_sample(_binary_cross_entropy(config, facts, key))
        case FocalLoss():
            return _focal(config, facts, key)
        case TripletLoss() | ContrastiveLoss():
            return _comparing(config, facts, key)
        case MseLoss() | L1Loss() | HuberLoss():
            function = _per_sample(_of_numbers(config))
        case DiceLoss() | InBatchNegativesLoss():
            task = _OF_ONE_TASK[config.type]
            raise FinetuneError(f"loss {config.type!r} is for task: {{type: {task}}}", key=key)
        case ImportLoss(path=path, args=args):
            own = _imported_loss(path, args, facts.trust, key)
            return own_loss(config.label, config.weight, own, (own,))
        case _:
            assert_never(config)
    return made(function)


_OF_ONE_TASK = {"dice": "segmentation", "in_batch_negatives": "similarity"}
"""Tasks that alone take a loss, by its type."""


def own_loss(
    name: str, weight: float, function: LossFunction, declared_by: Sequence[object]
) -> WeightedLoss:
    """Return a loss of the user's own.

    Args:
        name: Its name in the logs.
        weight: Its weight.
        function: The loss.
        declared_by: Objects whose attributes `whole_window` and `soft_targets` say what it needs
            and takes.
    """
    is_whole, takes_shares = (
        any(bool(getattr(one, said, False)) for one in declared_by)
        for said in ("whole_window", "soft_targets")
    )
    return WeightedLoss(name, weight, function, is_whole, takes_shares)


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


def against_target(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Return a loss that calls `function` with the outputs and the target of the batch."""

    def losses(outputs: Tensor, batch: Batch) -> Tensor:
        if batch.target is None:
            raise ValueError("there are no targets")
        return function(outputs, batch.target)

    return losses


def _of_numbers(config: MseLoss | L1Loss | HuberLoss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the error of each number."""
    match config:
        case MseLoss():
            return partial(F.mse_loss, reduction="none")
        case L1Loss():
            return partial(F.l1_loss, reduction="none")
        case HuberLoss(delta=delta):
            return partial(F.huber_loss, reduction="none", delta=delta)
        case _:
            assert_never(config)


def _binary_cross_entropy(
    config: BinaryCrossEntropyLoss, facts: TaskFacts, key: Key
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the binary cross entropy of each label.

    Raises:
        FinetuneError: targets are numbers, of which nothing can be spread over yes and no.
    """
    if config.label_smoothing and facts.learns == "numbers":
        raise FinetuneError(
            "label_smoothing needs labels or two classes: a number is not yes or no",
            hint="leave it out, or learn labels: task: {type: multilabel}",
            key=(*key, "label_smoothing"),
        )
    weights = weights_of_labels(config.pos_weight, facts, (*key, "pos_weight"))
    return partial(binary_cross_entropy, config.label_smoothing, weights)


def _comparing(config: TripletLoss | ContrastiveLoss, facts: TaskFacts, key: Key) -> WeightedLoss:
    """Return a loss that compares the samples of a window.

    Raises:
        FinetuneError: samples have no class to compare them by.
    """
    if facts.learns in ("labels", "numbers"):
        raise FinetuneError(
            f"{config.type} compares samples that have one class each, and here they have "
            f"{facts.learns}",
            hint="task: {type: classification} learns one class of each sample",
            key=key,
        )
    compare = triplet if isinstance(config, TripletLoss) else contrastive
    function = against_target(partial(compare, config.margin, config.distance))
    # Whole windows alone: half a window has fewer pairs, and so another loss.
    return WeightedLoss(
        config.label, config.weight, function, whole_window=True, takes_shares=False
    )


def _focal(config: FocalLoss, facts: TaskFacts, key: Key) -> WeightedLoss:
    """Return the focal loss of classes or labels, whichever the task learns.

    Raises:
        FinetuneError: it learns neither, or the weights are of the other kind.
    """
    if not facts.names:
        raise FinetuneError("focal needs classes or labels, which this task has not", key=key)
    if facts.learns == "labels":
        if config.class_weights is not None:
            raise FinetuneError(
                "class_weights are for classes, of which a sample has one; labels have 'alpha'",
                hint="alpha: 0.25, or binary_cross_entropy with pos_weight for each label",
                key=(*key, "class_weights"),
            )
        function = _per_sample(partial(focal_of_labels, config.gamma, config.alpha))
        return WeightedLoss(config.label, config.weight, function, takes_shares=False)
    weights = weights_of_classes(config.class_weights, facts, (*key, "class_weights"))
    count: Counter = len if weights is None else partial(weight_of, weights)
    if config.alpha is not None:
        if len(facts.names) != 2:
            raise FinetuneError(
                f"alpha is for labels and for two classes; there are {len(facts.names)}",
                hint="class_weights has a weight for each class",
                key=(*key, "alpha"),
            )
        # The count stays that of samples: alpha scales the loss, and its mean is not divided by it.
        weights = torch.tensor([1 - config.alpha, config.alpha], device=facts.device)

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        logits = fitting_logits(outputs, facts.names)
        return focal_of_classes(config.gamma, weights, logits, target)

    return WeightedLoss(
        config.label, config.weight, against_target(losses), takes_shares=False, count=count
    )


def _per_sample(function: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    """Return a loss that takes the mean of `function` over all axes but the first."""

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        outputs = one_tensor(outputs)
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

    return against_target(losses)
