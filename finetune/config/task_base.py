"""What all nodes of `task:` have in common: the form of the target, losses, names of metrics."""

from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from finetune.config.base import Node
from finetune.config.loss_keys import ImportLoss, Loss

SEPARATOR = ","
"""Separates two labels of a cell unless the config names another separator."""
TargetForm = Literal[
    "class", "labels", "numbers", "tags", "span", "mask", "boxes", "nothing", "any"
]
"""What a task learns of a sample: one class, any number of labels, numbers, a class for each word of
a text or each pixel of an image, the place of an answer in a text, boxes with a class each, nothing
beside its inputs, or whatever its column holds. The data room encodes the target column by it, and
knows no task."""


class BaseTask(Node):
    """Keys and answers that all tasks have."""

    target_form: ClassVar[TargetForm]
    """Form of its target, whatever its keys say."""
    reads_logits: ClassVar[bool] = False
    """Whether predictions are read from logits, whatever the losses take."""
    usual_losses: ClassVar[tuple[Loss, ...]]
    """Losses of a config that names none; none where the task brings its own."""

    type: str
    """Discriminator."""
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
        names = [loss.label for loss in self.losses or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"two losses share a name: {names!r}; give each its own 'name'")
        return self

    @property
    def learns(self) -> TargetForm:
        """Form of its target."""
        return self.target_form

    @property
    def target_bounds(self) -> tuple[float, float] | None:
        """Least and greatest number that a target may be; None if any number is one."""
        return None

    @property
    def chosen_losses(self) -> tuple[Loss, ...]:
        """The losses of the config, or the usual ones of the task if it names none."""
        return self.losses or self.usual_losses

    @property
    def chosen_separator(self) -> str | None:
        """Separator between two labels of a cell that the config names; None if it names none."""
        return None

    @property
    def named_classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of their numbers, if the config names them."""
        return None

    @property
    def ignored_number(self) -> int | None:
        """Number of the pixels that are left out of losses and metrics; None without any."""
        return None

    @property
    def has_own_loss(self) -> bool:
        """Whether a loss is the user's code, which may read every column of a batch."""
        return any(isinstance(loss, ImportLoss) for loss in self.chosen_losses)


class MeasuredTask(BaseTask):
    """A task whose losses and metrics the config names."""

    @model_validator(mode="after")
    def _metrics_have_distinct_names(self) -> Self:
        metrics = getattr(self, "metrics", None) or ()
        names = [one if isinstance(one, str) else one.label for one in metrics]
        # Metrics become tags: of two with one name, the second would overwrite the first.
        if "loss" in names or len(set(names)) < len(names):
            raise ValueError(
                f"two figures share a name, and one is always 'loss': {names!r}; "
                "give each metric its own 'name'"
            )
        return self
