"""Choose the task that suits what is learnt."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.table import Column, Listed
from finetune.data.targets.label_lists import listed_labels
from finetune.errors import DataError, did_you_mean
from finetune.starting.found_data import FoundData
from finetune.starting.judged_columns import MOST_CLASSES, Judged
from finetune.starting.templates_of_tasks import template_names
from finetune.starting.wishes import Choice, Wishes, last_word

_SEPARATORS = ("|", ";", ",")
_TASKS = (
    *("classification", "multilabel", "regression", "token_classification", "segmentation"),
    *("similarity",),
)
"""Tasks that `init` can begin."""
_Task = tuple[str, dict[str, Any], Choice]


def task_for(
    found: FoundData, targets: Sequence[Judged], by_name: Mapping[str, Judged], wishes: Wishes
) -> _Task:
    """Return the type of the task, its further keys, and why."""
    task, keys, choice = _task_of(found, targets, by_name)
    if wishes.task is None or wishes.task == task:
        return task, keys, choice
    if wishes.task not in _TASKS:
        raise DataError(
            f"cannot begin a task {wishes.task!r}",
            hint=did_you_mean(wishes.task, _TASKS) or _other(wishes.task),
        )
    if wishes.task == "similarity":
        return similarity_task(targets[0])
    return wishes.task, {}, Choice("task", wishes.task, "as you said")


def _other(task: str) -> str:
    """Return a hint for a task that no data are looked at for."""
    if task in template_names():
        return f"finetune init --template {task}"
    return f"tasks of init are {', '.join(_TASKS)}; a config by hand may name any other"


def _task_of(found: FoundData, targets: Sequence[Judged], by_name: Mapping[str, Judged]) -> _Task:
    """Return the task that suits the targets."""
    first = targets[0]
    # Several columns are learnt as classes only where each tells yes or no.
    if len(targets) > 1:
        if all(set(one.values) <= {0, 1, "0", "1"} for one in targets):
            why = f"since all {len(targets)} targets are 0 or 1"
            return "multilabel", {}, Choice("task", "multilabel", why)
        return "regression", {}, Choice("task", "regression", f"of {len(targets)} numbers")
    if first.role == "image":
        return "segmentation", {}, Choice("task", "segmentation", f"since {first.name} names masks")
    if first.role == "list":
        return _of_lists(found.columns[first.name], first, by_name, found)
    if first.role in ("category", "words") and (separator := _separator(first, found)):
        keys = {} if separator == "|" else {"separator": separator}
        why = f"since cells hold several labels, separated by {separator!r}"
        return "multilabel", keys, Choice("task", "multilabel", why)
    if first.role == "array":
        return (
            "regression",
            {},
            Choice("task", "regression", "since each sample has several numbers"),
        )
    # A few whole numbers are mostly numbers of classes.
    if first.role == "number" and not (first.is_whole and first.distinct <= MOST_CLASSES):
        kind = "whole numbers" if first.is_whole else "numbers"
        why = f"since {first.name} holds {first.distinct:,} different {kind}"
        return "regression", {}, Choice("task", "regression", why)
    why = f"since {first.name} has {first.distinct} different values"
    return "classification", {}, Choice("task", "classification", why)


def _of_lists(
    column: Column, first: Judged, by_name: Mapping[str, Judged], found: FoundData
) -> _Task:
    """Return the task of a target of lists: tags of words, or labels."""
    assert isinstance(column, Listed)
    for name, one in by_name.items():
        other = found.columns[name]
        if name != first.name and one.role == "list" and isinstance(other, Listed):
            lengths = [
                tuple(len(_entries(cell)) for cell in (a, b))
                for a, b in zip(column.values, other.values, strict=True)
            ]
            if all(a == b for a, b in lengths):
                why = f"since {first.name} has one tag for each word of {name}"
                return "token_classification", {}, Choice("task", "token_classification", why)
    return "multilabel", {}, Choice("task", "multilabel", f"since {first.name} holds lists")


def _entries(cell: Any) -> Sequence[Any]:
    """Return the entries of a list, also of one written as text."""
    if isinstance(cell, str):
        return listed_labels(cell) or ()
    return cell.tolist() if hasattr(cell, "tolist") else (cell or ())


def _separator(one: Judged, found: FoundData) -> str | None:
    """Return what separates several labels in the cells of a column; None if they hold one."""
    column = found.columns[one.name]
    assert isinstance(column, Listed)
    cells = [str(cell) for cell in column.values if cell]
    for separator in _SEPARATORS:
        several = [cell for cell in cells if separator in cell]
        parts = {part.strip() for cell in cells for part in cell.split(separator)}
        # `Oslo, Norway` is one label: several of them share their parts.
        if len(several) >= len(cells) / 5 and len(parts) < one.distinct and len(parts) <= 100:
            return separator
    return None


def is_score_of_a_pair(
    by_name: Mapping[str, Judged], inputs: Sequence[str], target: Judged, wishes: Wishes
) -> bool:
    """Tell whether the target is a score of two texts, and no class."""
    texts = [name for name in inputs if by_name[name].role == "text"]
    is_score = last_word(target.name) in ("score", "similarity")
    return wishes.task is None and len(texts) == 2 and target.role == "number" and is_score


def similarity_task(target: Judged) -> _Task:
    """Return the task of two texts and a score."""
    numbers = [float(value) for value in target.values] or [0.0, 1.0]
    keys = {"score_range": [min(numbers), max(numbers)]}
    why = f"since {target.name} is a score of two texts"
    return "similarity", keys, Choice("task", "similarity", why)
