"""Segmentation: one of several classes for each pixel, from logits `(B, C, H, W)`.

Letters: B samples, C classes, H height, W width, P pixels that have a class.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config.loss_keys import CrossEntropyLoss, DiceLoss, Loss
from finetune.config.task_keys import SegmentationTask
from finetune.data.batches import Batch
from finetune.data.media.pixel_classes import IGNORED, PixelClasses
from finetune.tasks.class_weights import weights_of_classes
from finetune.tasks.cross_entropies import weight_of
from finetune.tasks.each_class import with_each_class
from finetune.tasks.losses import against_target, build_loss
from finetune.tasks.mask_records import MaskRecord
from finetune.tasks.metrics import build_measures, target_of
from finetune.tasks.records import Asked
from finetune.tasks.running_metrics import metric_of_pixels
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import misfit
from finetune.tasks.weighted_loss import WeightedLoss


def segmentation(config: SegmentationTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: an imported loss or metric cannot be built.
    """
    classes = facts.names
    numbers = PixelClasses.of(classes, None, named=config.classes is not None).numbers
    measures = build_measures(
        config.metrics,
        partial(metric_of_pixels, classes=classes),
        facts,
        feed=partial(_pixels, classes),
    )
    return Task(
        tuple(_loss(node, n, facts) for n, node in enumerate(config.chosen_losses)),
        with_each_class(measures) if config.per_class else measures,
        partial(_read, classes, numbers),
        remark=_remark,
        picture="mask",
    )


def _loss(node: Loss, number: int, facts: TaskFacts) -> WeightedLoss:
    """Build one loss; `number` is its place in the config."""
    match node:
        case CrossEntropyLoss(label_smoothing=smoothing, class_weights=written):
            key = ("task", "losses", number, "class_weights")
            weights = weights_of_classes(written, facts, key)
            function = against_target(partial(_cross_entropy, facts.names, smoothing, weights))
            count = _num_pixels if weights is None else partial(weight_of, weights)
            return WeightedLoss(node.label, node.weight, function, count=count)
        case DiceLoss(smooth=smooth):
            function = against_target(partial(_dice, facts.names, smooth))
            return WeightedLoss(node.label, node.weight, function)
        case _:
            return build_loss(node, facts, number)


def _num_pixels(batch: Batch) -> Tensor:
    """Return how many pixels of a batch have a class, `()`."""
    return (target_of(batch) != IGNORED).sum()


def pixel_logits(classes: Sequence[str], outputs: Any, size: tuple[int, ...] | None) -> Tensor:
    """Return logits `(B, C, H, W)` as the network gives them, or resized bilinearly.

    One logit for two classes is that of the second, as in `class_logits`.

    Args:
        classes: Names of the classes.
        outputs: Logits `(B, C, ...)`, or a dict with them as `out`, as torchvision's networks give.
        size: Height and width; None to leave the size as it is.

    Raises:
        ValueError: the outputs are something else.
    """
    logits = outputs.get("out") if isinstance(outputs, Mapping) else outputs
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise ValueError("a logit for each class and pixel (B, C, H, W) is needed")
    if len(classes) == 2 and logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if logits.shape[1] != len(classes):
        raise ValueError(f"{len(classes)} classes need as many outputs")
    if size is None or logits.shape[2:] == size:
        return logits
    if logits.shape[2:].numel() == 1:
        raise ValueError("the network gives one pixel, which says nothing of places in the image")
    # As torchvision's networks do at their end (`_SimpleSegmentationModel.forward`).
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def _rows_of_pixels(logits: Tensor) -> Tensor:
    """Return logits `(B, C, H, W)` as one row for each pixel, `(B, H, W, C)`."""
    return logits.movedim(1, -1)


def _cross_entropy(
    classes: Sequence[str],
    smoothing: float,
    weights: Tensor | None,
    outputs: Any,
    target: Tensor,
) -> Tensor:
    """Return the cross entropy of each pixel, `(B * H * W,)`; 0 for those without a class."""
    logits = pixel_logits(classes, outputs, target.shape[1:])
    # As rows: on GPUs the sum over the pixels of images has no fixed order.
    return F.cross_entropy(
        _rows_of_pixels(logits).reshape(-1, len(classes)).float(),
        target.reshape(-1),
        weights,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )


def _dice(classes: Sequence[str], smooth: float, outputs: Any, target: Tensor) -> Tensor:
    """Return the soft Dice loss of each sample, `(B,)`.

    With probabilities p and masks g of 0 and 1, over the pixels of a sample that have a class:
    `1 - mean over classes of (2 sum p g + s) / (sum p + sum g + s)`. Drozdzal et al. 2016
    (arXiv:1608.04117), section 3.1, with `s` added so that a class without pixels is defined.
    """
    logits = pixel_logits(classes, outputs, target.shape[1:])
    has_class = (target != IGNORED).unsqueeze(1)
    given = logits.float().softmax(dim=1) * has_class
    true = _one_hot(target, len(classes)) * has_class
    overlap, sizes = ((given * true).sum((2, 3)), given.sum((2, 3)) + true.sum((2, 3)))
    return 1 - ((2 * overlap + smooth) / (sizes + smooth)).mean(dim=1)


def _one_hot(target: Tensor, size: int) -> Tensor:
    """Return masks `(B, H, W)` as 1 where a pixel is of a class, `(B, C, H, W)`."""
    # `one_hot` refuses -100; callers leave out the pixels without a class.
    return F.one_hot(target.clamp(min=0), size).movedim(-1, 1)


def _pixels(classes: Sequence[str], outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits `(P, C)` and classes `(P,)` of the pixels that have a class."""
    target = target_of(batch)
    has_class = target != IGNORED
    try:
        logits = pixel_logits(classes, outputs, target.shape[1:])
    except ValueError as error:
        raise misfit("the metrics", outputs, target, error) from error
    return _rows_of_pixels(logits)[has_class].float(), target[has_class]


def _remark(outputs: Any, batch: Batch) -> str | None:
    """Return that logits are resized to the masks, if they are; None else."""
    logits = outputs["out"] if isinstance(outputs, Mapping) else outputs
    given, wanted = tuple(logits.shape[2:]), tuple(target_of(batch).shape[1:])
    if given == wanted:
        return None
    return (
        f"the network gives logits of {given} pixels, the masks are of {wanted}: losses and "
        "metrics take the logits resized bilinearly"
    )


def _read(
    classes: Sequence[str], numbers: Sequence[int], outputs: Any, asked: Asked | None = None
) -> list[MaskRecord]:
    """Return the mask of each sample, from logits `(B, C, H, W)`.

    Logits are resized to the input of the network, as they are for metrics, and classes to the
    image as it was handed in.
    """
    try:
        seen = None if asked is None else size_of_input(asked.batch)
        masks = pixel_logits(classes, outputs, seen).argmax(dim=1).cpu()
    except ValueError as error:
        raise misfit("prediction", outputs, None, error) from error
    read = []
    for number, mask in enumerate(masks):
        size = None if asked is None else asked.size(number)
        # Classes are never blended: the nearest pixel gives its own.
        whole = mask if size is None else _resized(mask, size)
        shares = whole.flatten().bincount(minlength=len(classes)).double() / whole.numel()
        by_class = dict(zip(classes, shares.tolist(), strict=True))
        read.append(MaskRecord(whole, by_class, tuple(numbers)))
    return read


def size_of_input(batch: Batch) -> tuple[int, ...] | None:
    """Return height and width of the images that the network takes; None without any."""
    images = (values for values in batch.inputs.values() if values.ndim == 4)
    return next((tuple(values.shape[2:]) for values in images), None)


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask in another size, each pixel with the class of the nearest one."""
    # As floats, which hold every class number exactly; `interpolate` takes no whole numbers.
    planes = mask[None, None].float()
    return F.interpolate(planes, size=size, mode="nearest-exact")[0, 0].long()
