"""`train:` length of training, batch sizes, and how often to log, evaluate and save."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_COUNT, Count, NotNegative, Positive, Seconds


class Every(Node):
    """How often something happens: every so many epochs, or every so many steps."""

    epochs: Count | None = None
    """Number of epochs in between."""
    steps: Count | None = None
    """Number of optimizer steps in between."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("needs exactly one of 'epochs' and 'steps'")
        return self


class EarlyStoppingConfig(Node):
    """End the run when a metric of the evaluation no longer improves."""

    metric: Annotated[str, PUBLIC] = "validation/loss"
    """Tag of the metric that is watched."""
    patience: Count = 3
    """Number of evaluations in a row without improvement that ends the run."""
    min_delta: NotNegative = 0.0
    """Smallest change that counts as improvement, in the metric's own unit."""
    across_phases: bool = False
    """Whether best value and patience carry over from phase to phase; if not, both start anew with each phase."""


class AverageConfig(Node):
    """Average the trained parameters over the steps, and evaluate, keep and use the average."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Share that the average keeps in each step: it is then mostly over the last `1 / (1 - decay)` steps."""


class CheckpointConfig(Node):
    """When the run is saved, and which checkpoints are kept."""

    every: Every = Every(epochs=1)
    """How often. The end of the run is always saved."""
    keep_last: Count = 2
    """Number of newest checkpoints that are kept."""
    best: Annotated[str | None, PUBLIC] = "auto"
    """Tag of the metric, such as `validation/loss`, by which the best checkpoint is chosen, kept, and used for test and prediction. `auto` means the first metric of the task whose direction is known, else the loss, if there are validation samples; of equal figures the earliest one counts. With `null`, and without validation samples, the last checkpoint is used."""
    keep_best: Count | None = None
    """Number of best checkpoints, by `best`, that are kept; one if left out."""
    path: str | None = None
    """Folder for this run's checkpoints, such as one on a larger disk, absolute or relative to the run folder; `checkpoints` in the run folder if left out."""
    background: bool = False
    """Whether training goes on while a checkpoint is written. What is saved is copied first, so memory for one more copy is needed."""

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
    """Samples per optimizer step."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Samples per forward and backward pass; a step adds up as many passes as it needs. `auto` takes all samples at once. Either number is halved whenever memory runs out; window, loss and rates stay the same."""
    limit: (
        Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(gt=0, le=MAX_COUNT)] | None
    ) = None
    """For a quick look: share of the training samples, below 1, or their number. They are drawn by the seed, classes keep their shares, and a smaller limit takes a part of what a larger one takes. Validation and test samples stay, so that figures can be compared. All if left out."""
    drop_last: bool = False
    """Whether the last step of an epoch is skipped if it has fewer samples."""
    max_grad_norm: Positive | None = None
    """Largest norm over all gradients; larger ones are scaled down to it. No limit if left out."""
    nan: Literal["stop", "skip", "rollback"] = "stop"
    """What happens if a loss or gradient is infinite or NaN, always before the update: `stop` ends the run, `skip` skips the window, `rollback` returns to the last good checkpoint and skips the window when it comes again."""
    nan_limit: Count = 10
    """Number of windows that may be skipped in a run; one more ends it."""
    hang_timeout_s: Seconds | None = None
    """Seconds without progress after which a hung run prints its stacks and ends; no limit if left out."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass. Weights stay in float32; `float16` needs a GPU and scales the loss."""
    compile: bool = False
    """Whether `torch.compile` compiles the network behind the frozen prefix. The prefix itself is not compiled, cached or not. A resumed run meets other shapes first, for which other code may be generated, so its last bits may differ. Needs a C++ compiler."""
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"
    """How several processes, started by torchrun, train one network. With `ddp` each holds all of it and takes a share of the micro-batches of each step. With `fsdp2` each holds a part of the weights, their gradients and the optimizer's state, and the processes gather one block after the other for a pass; blocks whose outputs are in the activation cache are not gathered. `auto` is `ddp`, and `fsdp2` where weights, gradients and state would take more than 80 % of the memory of a process. Without effect in a single process."""
    sync_norm: bool = False
    """Whether batch norms that train normalise over the samples of all processes in a pass, as one process with larger passes does, at two messages for each norm and pass; by default each process normalises over its own. All processes then take equally many passes in a step, and a lack of memory ends the run. Without effect in a single process."""
    deterministic: bool = True
    """Whether a GPU uses kernels that give the same bits every time, where there are any, so that a resumed run ends as one that was not stopped. Sets torch's switches for the whole process. Attention then runs by torch's plain kernel, which takes more memory for long inputs; `false` may be faster. A CPU needs no such switch."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the fastest one available."""
    evaluate_every: Every = Every(epochs=1)
    """How often the validation samples are evaluated."""
    log_every: Count = 10
    """Steps between two logged ones. The first and the last are always logged."""
    early_stopping: EarlyStoppingConfig | None = None
    """When to end early; never if left out."""
    average: AverageConfig | None = None
    """Exponential moving average of the trained parameters (EMA). Training itself goes on with the weights as they are; the average is what is evaluated, watched, tested, and used for prediction. It begins with a parameter's own value when the parameter begins to train, and ends when it is frozen. Buffers, such as running statistics, are not averaged. None if left out."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved, and which checkpoints are kept."""

    @field_validator("limit", mode="before")
    @classmethod
    def _a_share_is_below_one(cls, value: Any) -> Any:
        # 1.0 would be read as one sample, and is most often meant as all of them.
        if isinstance(value, bool) or (isinstance(value, float) and value >= 1):
            raise ValueError(
                f"a share is below 1 and a number of samples is whole, got {value!r}; "
                "without the key all samples are used"
            )
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("needs exactly one of 'epochs' and 'steps'")
        # It would never be filled; whoever writes it expects something else of the key.
        if self.micro_batch != "auto" and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must not exceed batch_size ({self.batch_size})"
            )
        return self

    @property
    def pass_size(self) -> int:
        """Samples per forward and backward pass, as long as memory allows."""
        return self.batch_size if self.micro_batch == "auto" else self.micro_batch
