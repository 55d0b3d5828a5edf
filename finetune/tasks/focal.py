"""Focal loss: cross entropy in which samples that the network is sure of weigh little.

Lin et al., "Focal Loss for Dense Object Detection" (2017), equations 4 and 5: with p the
probability of the right answer, FL = -alpha (1 - p)^gamma log p.

Letters: B samples, C classes or labels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_of_classes(
    gamma: float, weights: Tensor | None, logits: Tensor, target: Tensor
) -> Tensor:
    """Return the focal loss of each sample, `(B,)`.

    Args:
        gamma: Power of 1 - p.
        weights: alpha of each class, `(C,)`; None for 1.
        logits: `(B, C, ...)`.
        target: Class numbers `(B, ...)`; -100 adds nothing.
    """
    # -log p of the right class; 0 where the target is left out, so its focal loss is 0, too.
    surprise = F.cross_entropy(logits.float(), target, reduction="none")
    losses = _of_surprise(gamma, surprise)
    return losses if weights is None else losses * weights[target.clamp_min(0)]


def focal_of_labels(gamma: float, alpha: float | None, logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss of each label, `(B, C)`.

    Args:
        gamma: Power of 1 - p.
        alpha: Weight of targets of 1; those of 0 have 1 - alpha. None for 1 both.
        logits: `(B, C)` or `(B,)`.
        target: 0 and 1, of the same shape.
    """
    target = target.to(logits.dtype)
    surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none").float()
    losses = _of_surprise(gamma, surprise)
    return losses if alpha is None else losses * (alpha * target + (1 - alpha) * (1 - target))


def _of_surprise(gamma: float, surprise: Tensor) -> Tensor:
    """Return (1 - p)^gamma * s for s = -log p."""
    # `expm1` is exact where p is near 1. The bound keeps the gradient of a power below 1 finite
    # there, where the loss itself is 0.
    rest = (-torch.expm1(-surprise)).clamp_min(torch.finfo(surprise.dtype).tiny)
    return rest.pow(gamma) * surprise
