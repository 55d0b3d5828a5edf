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


def triplet_given(margin: float, distance: Distance, embeddings: Tensor) -> Tensor:
    """Return the triplet loss of each given triplet, `(B,)`.

    Schroff et al., "FaceNet" (2015), equation 3, with a plain distance d in place of its square:
    max(0, margin + d(a, p) - d(a, n)).

    Args:
        margin: The margin.
        distance: Which distance d is.
        embeddings: Those of a, p and n, `(B, 3, D)`.
    """
    anchor, like, other = embeddings.unbind(1)
    near, far = (_apart(distance, anchor, one) for one in (like, other))
    return (margin + near - far).clamp_min(0)


def contrastive_given(
    margin: float, distance: Distance, embeddings: Tensor, alike: Tensor
) -> Tensor:
    """Return the contrastive loss of each given pair, `(B,)`.

    Hadsell et al. (2006), equation 4: s d^2 / 2 + (1 - s) max(0, margin - d)^2 / 2.

    Args:
        margin: The margin.
        distance: Which distance d is.
        embeddings: Those of the pair, `(B, 2, D)`.
        alike: How much a pair is alike, s, from 0 to 1; `(B,)`.
    """
    apart = _apart(distance, *embeddings.unbind(1))
    return (alike * apart.square() + (1 - alike) * (margin - apart).clamp_min(0).square()) / 2


def in_batch_negatives(scale: float, embeddings: Tensor, *, symmetric: bool) -> Tensor:
    """Return the loss of finding each sample's partner among those of the whole batch, `(B,)`.

    Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply" (2017,
    arXiv:1705.00652), section 4.4: -log of the softmax of scale * cosine(sample, partner) over all
    partners. Of triplets the third embeddings are candidates, too.

    Args:
        scale: Factor on the cosines.
        embeddings: Those of samples, partners, and of others if there are any; `(B, 2 or 3, D)`.
        symmetric: Whether partners find their samples, too; then it is the mean of both losses.
    """
    sample, partner, *others = F.normalize(embeddings, dim=2).unbind(1)
    own = torch.arange(len(sample), device=sample.device)
    cosines = sample @ torch.cat([partner, *others]).T
    losses = F.cross_entropy(scale * cosines, own, reduction="none")
    if not symmetric:
        return losses
    # Without the others: they belong to a sample as negatives, and have no sample to find.
    back = F.cross_entropy(scale * (partner @ sample.T), own, reduction="none")
    return (losses + back) / 2


def _apart(distance: Distance, first: Tensor, second: Tensor) -> Tensor:
    """Return the distance of each pair of embeddings `(B, D)`, `(B,)`."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(first, second)
    # Not the root of a sum of squares: its gradient at distance 0 is NaN, and here it is 0.
    apart: Tensor = torch.linalg.vector_norm(first - second, dim=1)
    return apart


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
