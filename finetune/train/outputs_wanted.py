"""What a task, or each task of a list, needs of the network's outputs."""

from finetune.config.task_base import TargetForm
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.data.opening import DataFacts
from finetune.models.heads import HeadKind, HeadWanted, OutputWanted
from finetune.tasks.task_facts import TrainingClasses, TrainingCounts


def classes_by_target(facts: DataFacts) -> dict[str, TrainingClasses]:
    """Return the classes of each target of a list of tasks, as the tasks take them."""
    return {
        # Samples whose target is missing do not count.
        name: TrainingClasses(one.names, TrainingCounts(one.samples, one.counts))
        for name, one in facts.by_target.items()
    }


def outputs_wanted(task: AnyTask, facts: DataFacts) -> dict[str, OutputWanted]:
    """Return the layers that the tasks of a list read, by name; none for a single task."""
    wanted: dict[str, OutputWanted] = {}
    for number, one in enumerate(task.tasks if isinstance(task, TaskList) else ()):
        known = facts.by_target.get(one.target)
        width = None if known is None else len(known.names)
        # Of two tasks that read one layer, the first one says how wide it is.
        wanted.setdefault(
            one.output,
            OutputWanted(head_wanted(one, width), ("task", "tasks", number, "output")),
        )
    return wanted


def head_wanted(task: AnyTask, classes: int | None) -> HeadWanted:
    """Return the head that a task needs of a network whose output is `logits`."""
    kind = "sample" if task.learns == "several" else _HEADS.get(task.learns, "sample")
    return HeadWanted(kind, classes)


_HEADS: dict[TargetForm, HeadKind] = {"tags": "token", "span": "span", "mask": "pixel"}
"""Heads for targets that a sample has many of; those of all other forms are of whole samples."""
