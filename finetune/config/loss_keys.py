"""`losses:` of a task, each a node with its weight and its name in the logs."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES, Arguments, NotNegative, Positive

_Share = Annotated[float, Field(ge=0, le=1)]


def _form_of_weights(value: Any) -> str:
    """Return the tag of weights: a word, a list in the order of the classes, or by class."""
    # By its form alone: without a tag pydantic would report the faults of all three.
    if isinstance(value, Mapping):
        return "by class"
    return "list" if isinstance(value, list | tuple) else "word"


Weights = Annotated[
    Annotated[Literal["balanced"], Tag("word")]
    | Annotated[tuple[NotNegative, ...], Tag("list")]
    | Annotated[dict[str, NotNegative], Tag("by class")],
    Discriminator(_form_of_weights),
]
"""Weights of classes or labels: a word, a list in the order of the classes, or by class."""


class _Loss(Node):
    weight: Positive = 1.0
    """Factor of this loss in the weighted sum."""
    name: Annotated[str | None, PUBLIC] = Field(
        default=None, pattern=r"^[A-Za-z_0-9]+$", max_length=MAX_NAME_BYTES
    )
    """Name in the logs; the type if left out."""
    type: str
    """Discriminator."""
    takes_logits: ClassVar[bool] = False
    """Whether it takes outputs as logits, so that the network must not squash them."""

    @property
    def label(self) -> str:
        """Name of the loss in the logs."""
        return self.name or self.type


class CrossEntropyLoss(_Loss):
    """Cross entropy between logits `(B, C)` and class numbers `(B,)`."""

    type: Literal["cross_entropy"]
    """Discriminator."""
    takes_logits: ClassVar[bool] = True
    label_smoothing: _Share = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: Weights | None = None
    """Weight of each class: a list in their order, `{class: weight}` where a class that is not named weighs 1, or `balanced` for n / (k * count) as in scikit-learn, counted over the training samples. The mean of a window is divided by the sum of its samples' weights, as in `torch.nn.CrossEntropyLoss`; a mixed sample (`mixup`, `cutmix`) weighs what its shares of classes do."""


class BinaryCrossEntropyLoss(_Loss):
    """Mean over labels of the binary cross entropy between logits and targets, both `(B, C)`."""

    type: Literal["binary_cross_entropy"]
    """Discriminator."""
    takes_logits: ClassVar[bool] = True
    label_smoothing: _Share = 0.0
    """Share of the target that is spread evenly over yes and no: 1 becomes 1 - share / 2, 0 becomes share / 2."""
    pos_weight: Weights | None = None
    """Weight of the samples that have a label, against 1 for those without: a list in the order of the labels, `{label: weight}` where a label that is not named has 1, or `balanced` for the training samples without it over those with it. With one logit for two classes it is about the second class."""


class FocalLoss(_Loss):
    """Cross entropy that weighs a sample the less the surer the network is of its class (Lin et al., 2017). By classes with softmax, by labels with sigmoid and as a mean over labels."""

    type: Literal["focal"]
    """Discriminator."""
    takes_logits: ClassVar[bool] = True
    gamma: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Power of 1 - p, where p is the probability of the right answer; 0 gives cross entropy."""
    alpha: _Share | None = None
    """Weight of samples with a label, or of the second of two classes; the others have 1 - alpha. None weighs both alike."""
    class_weights: Weights | None = None
    """Weight of each class, as for `cross_entropy`; in place of `alpha`, for classes."""

    @model_validator(mode="after")
    def _weighs_once(self) -> Self:
        if self.alpha is not None and self.class_weights is not None:
            raise ValueError("'alpha' and 'class_weights' weigh classes both; leave one out")
        return self


class TripletLoss(_Loss):
    """Triplet loss between embeddings: each sample should be nearer to its like than to others. Of classes between the outputs `(B, D)` of a window, with its hardest pairs (Hermans et al., 2017); of the triplets of `similarity` each by itself (Schroff et al., 2015)."""

    type: Literal["triplet"]
    """Discriminator."""
    margin: Positive = 0.2
    """By how much nearer it should be."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two embeddings; `cosine` is 1 minus their cosine."""


class ContrastiveLoss(_Loss):
    """Contrastive loss between embeddings (Hadsell et al., 2006): those that are alike should be near, others at least a margin apart. Of classes over all pairs of a window's outputs `(B, D)`; of the pairs of `similarity` each by itself, where score 1 says alike and 0 not."""

    type: Literal["contrastive"]
    """Discriminator."""
    margin: Positive = 1.0
    """Distance from which on a pair of two classes adds nothing."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two embeddings; `cosine` is 1 minus their cosine."""


class InBatchNegativesLoss(_Loss):
    """Cross entropy of finding each sample's partner among all partners of a window, by cosines of embeddings (Henderson et al., 2017; MultipleNegativesRanking, InfoNCE); for pairs and triplets of `similarity`."""

    type: Literal["in_batch_negatives"]
    """Discriminator."""
    scale: Positive = 20.0
    """Factor on the cosines before the softmax; one divided by the temperature."""
    symmetric: bool = False
    """Whether each partner must find its sample as well; the mean of both losses (as in CLIP)."""


class MseLoss(_Loss):
    """Mean squared error over a sample's outputs."""

    type: Literal["mse"]
    """Discriminator."""


class L1Loss(_Loss):
    """Mean absolute error over a sample's outputs."""

    type: Literal["l1"]
    """Discriminator."""


class HuberLoss(_Loss):
    """Squared error up to `delta`, absolute error beyond, mean over a sample's outputs."""

    type: Literal["huber"]
    """Discriminator."""
    delta: Positive = 1.0
    """Error at which the loss turns from squared to absolute."""


class DiceLoss(_Loss):
    """One minus the soft Dice coefficient of each sample's masks, a mean over classes; for `segmentation`."""

    type: Literal["dice"]
    """Discriminator."""
    takes_logits: ClassVar[bool] = True
    smooth: float = Field(default=1.0, gt=0, le=1e6)
    """Pixels that are added to overlap and sizes alike, so that a class without pixels costs little."""


class ImportLoss(_Loss):
    """The user's own loss, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.losses:make`: called with `args`, it returns a callable from `(outputs, batch)` to per-sample losses `(B,)`, or to their sum and count, both one number: so tokens or pixels can be averaged over the whole window. With the attribute `whole_window = True`, a loss that compares samples (such as a contrastive one) may return one number, and no window is ever split into micro-batches. With `soft_targets = True` it gets shares of classes `(B, C)` where `mixup` or `cutmix` makes them."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""


Loss = Annotated[
    CrossEntropyLoss
    | BinaryCrossEntropyLoss
    | FocalLoss
    | TripletLoss
    | ContrastiveLoss
    | InBatchNegativesLoss
    | MseLoss
    | L1Loss
    | HuberLoss
    | DiceLoss
    | ImportLoss,
    Field(discriminator="type"),
]
