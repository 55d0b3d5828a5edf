"""Cross entropies of classes and labels, with smoothing and weights.

Letters: B samples, C classes or labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.batches import Batch
from finetune.tasks.unfit_outputs import one_tensor


def cross_entropy(
    classes: Sequence[str],
    smoothing: float,
    weights: Tensor | None,
    outputs: Tensor,
    target: Tensor,
) -> Tensor:
    """Return the cross entropy of each sample, times the weight of its class.

    With smoothing and weights it is torch's: each class has its own weight in the part that is
    spread over all of them.

    Raises:
        ValueError: there are not as many logits as classes.
    """
    logits = fitting_logits(outputs, classes)
    if weights is None:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    # Weights are float32, and torch wants both alike; logits may be of half precision.
    return F.cross_entropy(
        logits.float(), target, weights, reduction="none", label_smoothing=smoothing
    )


def fitting_logits(outputs: Tensor, classes: Sequence[str]) -> Tensor:
    """Return one logit for each class; raise ValueError if there are others."""
    logits = class_logits(outputs, classes)
    # torch would take more outputs than classes without an error.
    if classes and logits.ndim > 1 and logits.shape[1] != len(classes):
        raise ValueError(f"{len(classes)} classes need as many outputs")
    return logits


def weight_of(weights: Tensor, batch: Batch) -> Tensor:
    """Return the sum of the weights of a batch's samples, tokens or pixels, `()`.

    A mixed sample with shares p of classes weighs sum_c p_c w_c: as a whole sample of class c
    weighs w_c, its mean is the one of class numbers where every share is 0 or 1.
    (`torch.nn.CrossEntropyLoss` divides by the number of samples where it is given shares.)
    """
    target = batch.target
    assert target is not None  # a loss against the target has refused it before
    if target.is_floating_point():
        return (target * weights).sum()
    # Numbers below 0 are targets to leave out.
    return (weights[target.clamp_min(0)] * (target >= 0)).sum()


def binary_cross_entropy(
    smoothing: float, weights: Tensor | None, outputs: Tensor, target: Tensor
) -> Tensor:
    """Return the binary cross entropy of each label, of the shape of the target.

    With smoothing e and positive weight w, for target y and logit z:
    y' = y (1 - e) + e / 2, loss = -(w y' log sigmoid(z) + (1 - y') log sigmoid(-z)).
    """
    if smoothing:
        target = target * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(outputs, target, reduction="none", pos_weight=weights)


def class_logits(outputs: Tensor, classes: Sequence[str]) -> Tensor:
    """Return one logit for each class `(B, C)`.

    A single logit `z` `(B, 1)` or `(B,)` for two classes is that of the second: the pair `(0, z)`
    has its loss, for `softmax(0, z)` is `(1 - sigmoid(z), sigmoid(z))`.

    Raises:
        ValueError: the outputs are not one tensor.
    """
    outputs = one_tensor(outputs)
    if len(classes) == 2 and set(outputs.shape[1:]) <= {1}:
        logit = outputs.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
    return outputs
