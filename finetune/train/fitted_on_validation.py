"""What a run fits on its validation samples: the temperature, and the threshold beside it.

Both are found once, at the end, with the weights in use. `summary.json` keeps them with the step of
these.
"""

from typing import Any

from finetune.data.batches import Samples
from finetune.errors import FinetuneError
from finetune.runs.folder import RunFolder
from finetune.tasks.task import Task
from finetune.terminal import figure
from finetune.train.chosen_threshold import (
    choose_threshold,
    kept_at_end,
    kept_threshold,
    take_kept,
)
from finetune.train.evaluator import Evaluator

_NAME = "temperature"


def refuse_uncalibrated(task: Task, validation: Samples | None) -> None:
    """Raise if a temperature is to be fitted and there are no samples to fit it on.

    Raises:
        FinetuneError: there are none.
    """
    if task.temperature is not None and validation is None:
        raise FinetuneError(
            "the temperature is fitted on validation samples, and there are none",
            hint="data.split: {validation: 0.1} sets some aside",
            key=("inference", "calibrate"),
        )


def fit_on_validation(evaluator: Evaluator, samples: Samples | None) -> list[str]:
    """Choose the threshold and fit the temperature on the validation samples, if asked to.

    Returns:
        Lines for the user.
    """
    return [*choose_threshold(evaluator, samples), *_fit_temperature(evaluator, samples)]


def _fit_temperature(evaluator: Evaluator, samples: Samples | None) -> list[str]:
    temperature = evaluator.task.temperature
    if temperature is None or samples is None:
        return []
    temperature.forget()
    evaluator.figures(samples, collect=temperature.collect)
    why = temperature.fit()
    errors = temperature.errors()
    if temperature.value is None:
        return [f"temperature: none is fitted, probabilities are those of the network: {why}"]
    return [
        f"temperature: {figure(temperature.value)}, fitted on {len(samples)} validation samples; "
        f"their expected calibration error is {figure(errors.after)}, {figure(errors.before)} "
        "without it"
    ]


def kept_of_validation(task: Task, step: int) -> dict[str, Any]:
    """Return what `summary.json` keeps of threshold and temperature; empty if none is asked for.

    Args:
        task: The task.
        step: The step of the weights in use.
    """
    threshold = kept_threshold(task, step)
    if task.temperature is None:
        return threshold
    # Also where none could be fitted: a second start of the run need not try again.
    return threshold | {_NAME: {"step": step, "value": task.temperature.value}}


def lacks_temperature(task: Task, folder: RunFolder, step: int) -> bool:
    """Tell whether a temperature is asked for that a run has not tried to fit for a step."""
    return task.temperature is not None and kept_at_end(folder, _NAME, step) is None


def take_fitted(task: Task, folder: RunFolder, step: int) -> tuple[str, ...]:
    """Take threshold and temperature that a run has found for the weights of a step.

    Returns:
        A line for the user for each that it has not found.

    Raises:
        CheckpointError: what the run folder holds is damaged.
    """
    return take_kept(task, folder, step) + _take_temperature(task, folder, step)


def _take_temperature(task: Task, folder: RunFolder, step: int) -> tuple[str, ...]:
    if task.temperature is None:
        return ()
    kept = kept_at_end(folder, _NAME, step)
    if kept is None:
        return (
            f"no temperature is fitted for the weights of step {step}, so probabilities are those "
            "of the network; `finetune train` with the same inference.calibrate fits it when the "
            "run has ended",
        )
    if kept.get("value") is None:
        return ("no temperature could be fitted, so probabilities are those of the network",)
    task.temperature.read(kept["value"], str(folder.path / "summary.json"))
    return ()
