"""Choose what collects an evaluation for pictures, by what the task learns."""

from collections.abc import Sequence

from finetune.config.task_base import TargetForm
from finetune.config.task_keys import DetectionTask, SimilarityTask, SpanTask, Task
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.data.opening import DataFacts
from finetune.tasks.views import View
from finetune.train.looks.seen import Seen
from finetune.train.looks.seen_answers import SeenAnswers
from finetune.train.looks.seen_boxes import SeenBoxes
from finetune.train.looks.seen_classes import SeenClasses
from finetune.train.looks.seen_likeness import SeenPartners, SeenScores
from finetune.train.looks.seen_masks import SeenMasks
from finetune.train.looks.seen_rows import SeenLabels, SeenNumbers
from finetune.train.looks.seen_tags import SeenTags
from finetune.train.looks.seen_tasks import SeenTasks


def new_seen_of(task: AnyTask, facts: DataFacts, target: object) -> Seen | None:
    """Return what collects an evaluation of a task; None for one without pictures.

    Args:
        task: The task's node.
        facts: What is known about the data.
        target: `data.target`: a column, several, or None.
    """
    if isinstance(task, TaskList):
        found = {
            View(one.label, one.output, one.target): _of_one(
                one,
                facts.by_target[one.target].names if one.target in facts.by_target else (),
                (one.target,),
            )
            for one in task.tasks
        }
        return SeenTasks({view: seen for view, seen in found.items() if seen is not None})
    outputs = target if isinstance(target, tuple) else (str(target),) if target else ()
    return _of_one(task, facts.classes or (), outputs)


def _of_one(task: Task, names: Sequence[str], outputs: Sequence[str]) -> Seen | None:
    """Return what collects an evaluation of a task that is no list; see `new_seen`."""
    # What these give is of another form than their targets, and their keys say how it is read.
    if isinstance(task, SimilarityTask):
        is_scored = task.compares == "scores"
        return SeenScores(task) if is_scored else SeenPartners(task.compares == "triplets")
    if isinstance(task, SpanTask):
        return SeenAnswers(task)
    if isinstance(task, DetectionTask):
        return SeenBoxes(names, task.threshold)
    return new_seen(task.learns, names, outputs)


def new_seen(learns: TargetForm, names: Sequence[str], outputs: Sequence[str]) -> Seen | None:
    """Return what collects an evaluation of one form of target; None for one without pictures.

    Args:
        learns: Form of the target.
        names: Classes or labels.
        outputs: Names of the target columns.
    """
    match learns:
        case "class":
            return SeenClasses(names)
        case "labels":
            return SeenLabels(names)
        case "numbers":
            return SeenNumbers(outputs)
        case "mask":
            return SeenMasks(names)
        case "tags":
            return SeenTags(names)
        case _:
            return None
