"""`task:` as a list: several tasks over one network, each with its output and its column."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES, Positive
from finetune.config.loss_keys import Loss
from finetune.config.task_keys import (
    ClassificationTask,
    MultilabelTask,
    RegressionTask,
    SimilarityTask,
    Task,
)


class ListedKeys(Node):
    """What a task of a list has beside its own keys."""

    name: Annotated[str | None, PUBLIC] = Field(
        default=None, pattern=r"^[A-Za-z_0-9]+$", max_length=MAX_NAME_BYTES
    )
    """Name in logs and predictions; its target column if left out."""
    output: Annotated[str, PUBLIC] = Field(min_length=1)
    """Name of the layer whose output it reads, or of a single output of it, as in `inputs` of a layer."""
    target: Annotated[str, PUBLIC] = Field(min_length=1)
    """Column that it learns. Where a class or a number is missing, the row does not count for this task."""
    weight: Positive = 1.0
    """Factor of its losses in the sum over all tasks."""

    @property
    def label(self) -> str:
        """Name of the task in logs and predictions."""
        return self.name or self.target


class ListedClassification(ClassificationTask, ListedKeys):
    """One of several classes per sample, as one of several tasks."""


class ListedMultilabel(MultilabelTask, ListedKeys):
    """Any number of labels per sample, as one of several tasks."""


class ListedRegression(RegressionTask, ListedKeys):
    """One number per sample, or a list of them, as one of several tasks."""


class ListedSimilarity(SimilarityTask, ListedKeys):
    """How much two samples are alike, as one of several tasks; its output is both embeddings."""

    @model_validator(mode="after")
    def _learns_a_column(self) -> Self:
        if self.compares != "scores":
            raise ValueError(
                f"compares: {self.compares} learns no column, and each task of a list learns one; "
                "compares: scores does, or make it a single task"
            )
        return self


_ALONE = {
    "token_classification": "the tags of a text go to its tokens, and a list of tasks has one value "
    "or one row of numbers for a whole sample",
    "segmentation": "a mask must move and be resized with its image, and a list of tasks has one "
    "value or one row of numbers for a whole sample",
    "span": "its texts are cut into windows, each of them a sample, and the other tasks of a list "
    "have one target for the whole text",
    "detection": "a detector computes its own losses, and has no output that a second task could "
    "read",
    "import": "its loss takes the outputs of all layers and the whole batch, not one of each",
}
"""Tasks that learn alone, and why."""


def _refuse_lonely(value: Any) -> Any:
    """Raise `ValueError` with the reason for a task that cannot be one of several."""
    type_ = value.get("type") if isinstance(value, Mapping) else None
    # Before pydantic, which would only tell which types there are, and no reason.
    if isinstance(type_, str) and type_ in _ALONE:
        remedy = (
            "make it the single task, and compute the losses of all tasks in it"
            if type_ == "import"
            else f"learn it by a run of its own: task: {{type: {type_}}}"
        )
        raise ValueError(f"{type_!r} cannot be one of several tasks: {_ALONE[type_]}; {remedy}")
    return value


ListedTask = Annotated[
    Annotated[
        ListedClassification | ListedMultilabel | ListedRegression | ListedSimilarity,
        Field(discriminator="type"),
    ],
    BeforeValidator(_refuse_lonely),
]


class TaskList(Node):
    """Several tasks over one network. The loss is the sum of their losses' means, each over the samples that have its target. `task: [...]` is its short form."""

    learns: ClassVar[Literal["several"]] = "several"
    reads_logits: ClassVar[bool] = False

    type: Literal["list"]
    """Discriminator."""
    tasks: tuple[ListedTask, ...] = Field(min_length=1)
    """The tasks."""

    @model_validator(mode="after")
    def _names_and_columns_are_distinct(self) -> "TaskList":
        labels = [task.label for task in self.tasks]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two tasks are called {twice!r}; give each its own 'name'")
        kinds: dict[str, str] = {}
        for task in self.tasks:
            # A batch has one column of each name, encoded in one way.
            if kinds.setdefault(task.target, task.type) != task.type:
                raise ValueError(
                    f"two tasks learn column {task.target!r} as different things: "
                    f"{kinds[task.target]} and {task.type}"
                )
        return self

    @model_validator(mode="after")
    def _tasks_ask_for_nothing_that_a_list_lacks(self) -> "TaskList":
        for task in self.tasks:
            if getattr(task, "threshold", None) == "auto":
                raise ValueError(
                    f"task {task.label!r}: threshold 'auto' is for a single task; in a list it is "
                    "a number"
                )
            if isinstance(task, RegressionTask) and task.per_output:
                raise ValueError(
                    f"task {task.label!r}: per_output is for several target columns, and a task of "
                    "a list has one"
                )
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that the tasks learn, each once."""
        return tuple(dict.fromkeys(task.target for task in self.tasks))

    @property
    def chosen_losses(self) -> tuple[Loss, ...]:
        """The losses of all tasks, in their order."""
        return tuple(loss for task in self.tasks for loss in task.chosen_losses)

    @property
    def log_gradient_norms(self) -> bool:
        """Whether the gradient of each loss is logged: if any of the tasks says so."""
        return any(task.log_gradient_norms for task in self.tasks)

    @property
    def has_own_loss(self) -> bool:
        """Whether a loss is the user's code, which may read every column of a batch."""
        return any(task.has_own_loss for task in self.tasks)


AnyTask = Annotated[Task | TaskList, Field(discriminator="type")]
"""A task, or a list of tasks written out."""


def _short_form(value: Any) -> Any:
    """Turn a plain list of tasks into its long form."""
    return {"type": "list", "tasks": value} if isinstance(value, list | tuple) else value


# With the tasks of a list beside it, so that marks of their keys are found in the short form too.
ShortTask = Annotated[AnyTask, BeforeValidator(_short_form), ListedTask]
"""A task, or a plain list of tasks."""
