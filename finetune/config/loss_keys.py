"""`losses:` of a task, each a node with its weight and its name in the logs."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES, Arguments, Positive


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
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    """Share of the target that is spread evenly over all classes."""


class BinaryCrossEntropyLoss(_Loss):
    """Mean over labels of the binary cross entropy between logits and targets, both `(B, C)`."""

    type: Literal["binary_cross_entropy"]
    """Discriminator."""
    takes_logits: ClassVar[bool] = True


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


class ImportLoss(_Loss):
    """The user's own loss, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.losses:make`: called with `args`, it returns a callable from `(outputs, batch)` to per-sample losses `(B,)`, or to their sum and count, both one number: so tokens or pixels can be averaged over the whole window. With the attribute `whole_window = True`, a loss that compares samples (such as a contrastive one) may return one number, and no window is ever split into micro-batches. With `soft_targets = True` it gets shares of classes `(B, C)` where `mixup` or `cutmix` makes them."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""


Loss = Annotated[
    CrossEntropyLoss | BinaryCrossEntropyLoss | MseLoss | L1Loss | HuberLoss | ImportLoss,
    Field(discriminator="type"),
]
