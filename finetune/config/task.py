"""`task:` what the network learns: losses, metrics, and the meaning of its outputs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES, Arguments, Positive


class _Loss(Node):
    weight: Positive = 1.0
    """Factor of this loss in the weighted sum."""
    name: Annotated[str | None, PUBLIC] = Field(
        default=None, pattern=r"^[A-Za-z_0-9]+$", max_length=MAX_NAME_BYTES
    )
    """Name in the logs; the type if left out."""


class CrossEntropyLoss(_Loss):
    """Cross entropy between logits `(B, C)` and class numbers `(B,)`."""

    type: Literal["cross_entropy"]
    """Discriminator."""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    """Share of the target that is spread evenly over all classes."""


class BinaryCrossEntropyLoss(_Loss):
    """Mean over labels of the binary cross entropy between logits and targets, both `(B, C)`."""

    type: Literal["binary_cross_entropy"]
    """Discriminator."""


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
    """`my_pkg.losses:make`: called with `args`, it returns a callable from `(outputs, batch)` to per-sample losses `(B,)`. With the attribute `whole_window = True`, a loss that compares samples (such as a contrastive one) may return one number, and no window is ever split into micro-batches. With `soft_targets = True` it gets shares of classes `(B, C)` where `mixup` or `cutmix` makes them."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""


Loss = Annotated[
    CrossEntropyLoss | BinaryCrossEntropyLoss | MseLoss | L1Loss | HuberLoss | ImportLoss,
    Field(discriminator="type"),
]

ClassificationMetric = Literal["accuracy", "f1", "precision", "recall", "auroc"]
RegressionMetric = Literal["mse", "rmse", "mae", "r2"]
Better = Literal["lower", "higher"]


class ImportMetric(Node):
    """The user's own metric, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.metrics:make`: called with `args`, it returns a `torchmetrics.Metric`, which gets the same inputs as the built-in ones."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""
    name: Annotated[str | None, PUBLIC] = Field(default=None, pattern=r"^[A-Za-z_0-9]+$")
    """Name in the logs; the part of `path` behind the colon if left out."""
    better: Better | None = None
    """Direction in which it improves; as its class says (`higher_is_better`) if left out. Needed only if a rule watches the metric."""

    @property
    def label(self) -> str:
        """Name of the metric in the logs."""
        return self.name or self.path.rpartition(":")[2].rpartition(".")[2]


def _form_of_metric(value: Any) -> str:
    """Return the tag of a metric: imported, or built in and given by name."""
    return "import" if isinstance(value, dict | ImportMetric) else "name"


_Metric = Discriminator(_form_of_metric)
_Imported = Annotated[ImportMetric, Tag("import")]


class _Task(Node):
    losses: tuple[Loss, ...] | None = None
    """Losses, whose weighted sum is minimised; the task's usual loss if left out."""
    log_gradient_norms: bool = False
    """Whether `train/grad_norm/<loss>` is logged for each of several losses. Costs one more backward pass per loss on logged steps."""

    @field_validator("losses", mode="before")
    @classmethod
    def _a_single_loss_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _losses_have_distinct_names(self) -> Self:
        names = [loss.name or loss.type for loss in self.losses or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"two losses share a name: {names!r}; give each its own 'name'")
        return self


class _MeasuredTask(_Task):
    @model_validator(mode="after")
    def _metrics_have_distinct_names(self) -> Self:
        metrics = getattr(self, "metrics", ())
        names = [one.label if isinstance(one, ImportMetric) else one for one in metrics]
        # Metrics become tags: of two with one name, the second would overwrite the first.
        if "loss" in names or len(set(names)) < len(names):
            raise ValueError(
                f"two figures share a name, and one is always 'loss': {names!r}; "
                "give each metric its own 'name'"
            )
        return self


class ClassificationTask(_MeasuredTask):
    """One of several classes per sample; outputs are logits `(B, C)`, or one logit `(B, 1)` for the second of two classes."""

    type: Literal["classification"]
    """Discriminator."""
    metrics: tuple[
        Annotated[Annotated[ClassificationMetric, Tag("name")] | _Imported, _Metric], ...
    ] = ("accuracy",)
    """Metrics of every evaluation in addition to the loss. `f1`, `precision` and `recall` are means over classes. A metric that is not defined is left out, such as such a mean if a class has no sample."""


class MultilabelTask(_MeasuredTask):
    """Any number of labels per sample; outputs are logits `(B, C)`."""

    type: Literal["multilabel"]
    """Discriminator."""
    metrics: tuple[
        Annotated[Annotated[ClassificationMetric, Tag("name")] | _Imported, _Metric], ...
    ] = ("f1",)
    """Metrics of every evaluation in addition to the loss, as means over labels. All but `accuracy` are left out if a label has no sample."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which on a label is predicted."""
    separator: str = Field(default=",", min_length=1)
    """Separator between two labels, if the target is text."""


class RegressionTask(_MeasuredTask):
    """One or more numbers per sample; outputs and targets have the same shape. `(B, 1)` counts as `(B,)`."""

    type: Literal["regression"]
    """Discriminator."""
    metrics: tuple[
        Annotated[Annotated[RegressionMetric, Tag("name")] | _Imported, _Metric], ...
    ] = ("mae",)
    """Metrics of every evaluation in addition to the loss. `r2` is left out if all targets are equal."""


class ImportTask(_Task):
    """The user's own task, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.tasks:make`: returns an object with `loss(outputs, batch)` and `metrics`. `loss` returns per-sample losses `(B,)`, or one number with `whole_window = True`, as for an imported loss. `soft_targets = True` says that it takes shares of classes `(B, C)`, which mixup and cutmix make. `metrics` maps names to a `torchmetrics.Metric` that gets `(outputs, target)`, or `(outputs, batch)` if the data has no target."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""
    better: dict[str, Better] = Field(default_factory=dict)
    """Direction in which its metrics improve, by name; as their classes say (`higher_is_better`) if left out."""

    @model_validator(mode="after")
    def _brings_its_own_loss(self) -> Self:
        if self.losses is not None:
            raise ValueError("the imported task brings its own loss; leave 'losses' out")
        return self


Task = Annotated[
    ClassificationTask | MultilabelTask | RegressionTask | ImportTask, Field(discriminator="type")
]
