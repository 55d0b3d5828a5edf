"""Thresholds that a run chooses on its validation samples: when, and where they are kept.

They are chosen once, at the end, with the weights in use, so they depend on nothing but these and
the samples: a run that was stopped and resumed has the same. `summary.json` keeps them with the
step of those weights.
"""

from typing import Any

from finetune.data.batches import Samples
from finetune.disk import is_file
from finetune.errors import FinetuneError, named
from finetune.runs.folder import RunFolder
from finetune.tasks.task import Task
from finetune.tasks.thresholds import USUAL, Threshold
from finetune.terminal import figure
from finetune.train.evaluator import Evaluator

_MOST_NAMED = 10
"""Labels that a line names with their threshold; the others are in `summary.json`."""


def refuse_without_validation(task: Task, validation: Samples | None) -> None:
    """Raise if a threshold is to be chosen and there are no samples to choose it on.

    Raises:
        FinetuneError: there are none.
    """
    if _to_choose(task) is not None and validation is None:
        raise FinetuneError(
            "threshold: auto is chosen on validation samples, and there are none",
            hint="data.split: {validation: 0.1} sets some aside; or write a number",
            key=("task", "threshold"),
        )


def choose_threshold(evaluator: Evaluator, samples: Samples | None) -> list[str]:
    """Choose the threshold with the best F1 of each label on the validation samples, if asked to.

    Returns:
        Lines for the user.
    """
    threshold = _to_choose(evaluator.task)
    if threshold is None or samples is None:
        return []
    # An evaluation that was stopped half-way may have left samples, which would count twice.
    threshold.forget()
    evaluator.figures(samples, collect=threshold.collect)
    without = threshold.choose()
    lines = [
        f"threshold: {in_words(threshold)}, by the best F1 on {len(samples)} validation samples; "
        f"their figures in training are those at {USUAL}"
    ]
    if without:
        lines.append(
            f"threshold: {USUAL} for {named(without)}: no validation sample has it, or the network "
            "gives it no finite probability above 0"
        )
    return lines


def kept_threshold(task: Task, step: int) -> dict[str, Any]:
    """Return what `summary.json` keeps of the chosen threshold; empty if none is chosen.

    Args:
        task: The task.
        step: The step of the weights in use.
    """
    threshold = _to_choose(task)
    return {} if threshold is None else {"threshold": {"step": step, **threshold.as_data()}}


def take_kept(task: Task, folder: RunFolder, step: int) -> tuple[str, ...]:
    """Take the threshold that a run has chosen for the weights of a step.

    Returns:
        A line for the user if it has chosen none for them.

    Raises:
        CheckpointError: what the run folder holds is damaged.
    """
    threshold = _to_choose(task)
    if threshold is None:
        return ()
    kept = kept_at_end(folder, "threshold", step)
    if kept is None:
        return (
            f"threshold: auto is chosen when training ends; for the weights of step {step} it is "
            f"{USUAL}",
        )
    threshold.read(kept.get("values"), str(folder.path / "summary.json"))
    return ()


def kept_at_end(folder: RunFolder, name: str, step: int) -> dict[str, Any] | None:
    """Return what `summary.json` keeps under a name for the weights of a step; None without it."""
    # A run that has not ended has none; one that is damaged may have held it.
    there = is_file(folder.path / "summary.json")
    found: Any = folder.read_json("summary.json") if there else None
    kept = found.get(name) if isinstance(found, dict) else None
    return kept if isinstance(kept, dict) and kept.get("step") == step else None


def chosen_in_words(task: Task) -> str | None:
    """Return the chosen threshold for the last lines of a run; None if none is chosen."""
    threshold = _to_choose(task)
    return None if threshold is None else in_words(threshold)


def in_words(threshold: Threshold) -> str:
    """Return the threshold of each label, or of the first ones."""
    values = list(threshold.as_data()["values"].items())
    shown = ", ".join(f"{name} {figure(value)}" for name, value in values[:_MOST_NAMED])
    more = len(values) - _MOST_NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


def _to_choose(task: Task) -> Threshold | None:
    """Return the threshold of a task if it is one to choose."""
    return task.threshold if task.threshold is not None and task.threshold.is_chosen else None
