"""Losses that compare the samples of a window by the distances of their embeddings.

Letters: B samples, D numbers of an embedding.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.tasks.unfit_outputs import one_tensor

Distance = Literal["euclidean", "cosine"]


def triplet(margin: float, distance: Distance, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the triplet loss with the hardest pairs of a window, `()`.

    Hermans et al., "In Defense of the Triplet Loss" (2017), equation 5: the mean over samples a of
    max(0, margin + max_p d(a, p) - min_n d(a, n)), where p are the other samples of its class and n
    those of other classes. Samples without either are left out; without any sample it is 0.

    Args:
        margin: The margin.
        distance: Which distance d is.
        outputs: Embeddings `(B, D)`.
        target: Class numbers `(B,)`.

    Raises:
        ValueError: the outputs are no embeddings.
    """
    apart, alike, other = _pairs(distance, outputs, target)
    farthest = apart.masked_fill(~alike, -torch.inf).amax(1)
    nearest = apart.masked_fill(~other, torch.inf).amin(1)
    has_both = alike.any(1) & other.any(1)
    # Chosen before the subtraction: the gradient of infinity minus infinity is NaN.
    farthest, nearest = (torch.where(has_both, one, apart[:, 0]) for one in (farthest, nearest))
    losses = (margin + farthest - nearest).clamp_min(0) * has_both
    return losses.sum() / has_both.sum().clamp_min(1)


def contrastive(margin: float, distance: Distance, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the contrastive loss over all pairs of a window, `()`.

    Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping" (2006), equation 4:
    the mean over pairs of d^2 / 2 for one class and of max(0, margin - d)^2 / 2 for two. Without
    any pair it is 0.

    Args:
        margin: The margin.
        distance: Which distance d is.
        outputs: Embeddings `(B, D)`.
        target: Class numbers `(B,)`.

    Raises:
        ValueError: the outputs are no embeddings.
    """
    apart, alike, other = _pairs(distance, outputs, target)
    near = apart.square() * alike
    far = (margin - apart).clamp_min(0).square() * other
    # Every pair is there twice, in both orders, in the sum and in the count.
    pairs = len(outputs) * (len(outputs) - 1)
    return (near + far).sum() / 2 / max(pairs, 1)


def _pairs(distance: Distance, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distance of each pair `(B, B)`, whether it is of one class, and whether of two.

    A sample and itself are neither.
    """
    if one_tensor(outputs).ndim != 2 or target.shape != (len(outputs),):
        raise ValueError("it needs one embedding and one class for each sample")
    same = target[:, None] == target[None, :]
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    embeddings = outputs.float()
    if distance == "cosine":
        embeddings = F.normalize(embeddings, dim=1)
        return 1 - embeddings @ embeddings.T, same & ~itself, ~same
    # Its gradient at distance 0 is 0, where that of a root would be infinite. The other mode, by
    # products, loses digits of short distances.
    apart = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return apart, same & ~itself, ~same
