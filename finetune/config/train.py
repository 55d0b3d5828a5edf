"""`train:` how long, in what portions, how often something else happens."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import Count, NotNegative, Positive, Seconds


class Every(Node):
    """How often something happens: after so many epochs, or after so many steps."""

    epochs: Count | None = None
    """Number of epochs between two times."""
    steps: Count | None = None
    """Number of optimizer steps between two times."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("needs exactly one of 'epochs' and 'steps'")
        return self


class EarlyStoppingConfig(Node):
    """End the run when a metric of the evaluation no longer improves."""

    metric: Annotated[str, PUBLIC] = "validation/loss"
    """Tag of the metric watched."""
    patience: Count = 3
    """Evaluations in a row without improvement after which the run ends."""
    min_delta: NotNegative = 0.0
    """Smallest change that counts as improvement, in the metric's own unit."""
    across_phases: bool = False
    """Whether best figure and patience are carried over from one phase to the next; both begin anew with each phase if not."""


class CheckpointConfig(Node):
    """When the run is saved, and what is kept."""

    every: Every = Every(epochs=1)
    """How often. The end of the run is always saved."""
    keep_last: Count = 2
    """How many of the newest are kept."""
    best: Annotated[str | None, PUBLIC] = "auto"
    """Tag of the metric, such as `validation/loss`, by which the best one is chosen, kept and used for test and prediction. `auto` takes the first metric of the task that says which way it improves, else the loss, where there are validation samples. The last one is used for null, and without validation samples."""
    keep_best: Count | None = None
    """How many of the best by `best` are kept; one if left out."""
    path: str | None = None
    """Folder of this run's checkpoints, such as one on a larger disk, absolute or relative to the run folder; `checkpoints` in the run folder if left out."""
    background: bool = False
    """Whether training goes on while a checkpoint is written. What is saved is copied first, so it takes memory once more."""

    @model_validator(mode="after")
    def _best_by_some_metric(self) -> Self:
        if self.keep_best is not None and self.best is None:
            raise ValueError(f"keep_best ({self.keep_best}) needs a metric in 'best'")
        return self


class TrainConfig(Node):
    """How training proceeds."""

    epochs: Count | None = None
    """Passes over the training samples."""
    steps: Count | None = None
    """Optimizer steps, in place of `epochs`."""
    batch_size: Count = 32
    """Samples of one optimizer step."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Samples of one forward and backward pass; a step adds up as many as it needs. `auto` takes all at once. Either is halved whenever memory runs out: window, loss and rates stay the same."""
    drop_last: bool = False
    """Whether an epoch's last step is left out when it has fewer samples."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this norm over all of them; never if left out."""
    nan: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or gradient that is infinite or NaN, always before its update: `stop` ends the run, `skip` leaves the window out, `rollback` goes back to the last good checkpoint and leaves the window out when it comes again."""
    nan_limit: Count = 10
    """How many windows may be left out in a run; one more ends it."""
    hang_timeout_s: Seconds | None = None
    """Seconds without progress after which a hung run prints its stacks and ends; it waits forever if left out."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass. The weights stay in float32; `float16` needs a GPU and scales the loss."""
    compile: bool = False
    """Whether `torch.compile` translates the network behind the frozen prefix. The prefix itself stays out of it, stored or not. A resumed run meets other shapes first, for which other code may be made: its last bits may differ. Needs a C++ compiler."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the fastest one here."""
    evaluate_every: Every = Every(epochs=1)
    """How often the validation samples are evaluated."""
    log_every: Count = 10
    """Steps between two logged ones. The first and the last are always logged."""
    early_stopping: EarlyStoppingConfig | None = None
    """When to end early; never if left out."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved, and what is kept."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("needs exactly one of 'epochs' and 'steps'")
        if self.micro_batch != "auto" and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must not exceed batch_size ({self.batch_size})"
            )
        return self

    @property
    def pass_size(self) -> int:
        """Samples of one forward and backward pass, as long as memory holds them."""
        return self.batch_size if self.micro_batch == "auto" else self.micro_batch
