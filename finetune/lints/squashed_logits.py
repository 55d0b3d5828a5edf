"""Find a squashing function, such as a softmax, before what takes the outputs as logits."""

from typing import NamedTuple

from torch import Tensor, nn

from finetune.config.task_keys import Task
from finetune.lints.last_operation import LastOperation, Squashing, last_operation

FEW = 4
"""Samples in the batch for which outputs and losses are examined."""


class Squashed(NamedTuple):
    """A squashing function where logits are needed."""

    module: str
    """Full name of the module that returned its values."""
    told: str
    """What it gives, who takes that as logits, and what follows; to be said of the module."""


def squashed_before(
    task: Task, model: nn.Module, inputs: dict[str, Tensor], output: str | None
) -> Squashed | None:
    """Return the squashing function before what a task reads as logits; None without one.

    Args:
        task: The config of the task.
        model: The network, in evaluation mode.
        inputs: A batch of `FEW` samples.
        output: The output that the task reads, of a network with several.
    """
    reader = _reader_of_logits(task)
    if reader is None:
        return None
    last = last_operation(model, inputs, output)
    # The softmax of predictions leaves the values of a log-softmax what they are.
    if last is None or (last.squashing == "log-softmax" and reader == _PREDICTIONS):
        return None
    told = f"gives {_range(last)}, and {reader} logits: {_effect(last, task)}"
    return Squashed(last.module, told)


_RANGES: dict[Squashing, str] = {
    "softmax": "probabilities, by a softmax",
    "log-softmax": "logarithms of probabilities, by a log-softmax",
    "sigmoid": "values between 0 and 1, by a sigmoid",
    "log-sigmoid": "values below 0, by a log-sigmoid",
    "ReLU": "values that are never below 0",
    "tanh": "values between -1 and 1, by a tanh",
    "softsign": "values between -1 and 1, by a softsign",
    "hardtanh": "values that are cut to a range, by a hardtanh or ReLU6",
}


def _range(last: LastOperation) -> str:
    """Return the words for the range of outputs."""
    if not last.is_guess:
        return _RANGES[last.squashing]
    return (
        f"values between 0 and 1 for all of {FEW} samples tried, as a sigmoid written out by hand "
        "does"
    )


_PREDICTIONS = "predictions are read from"


def _reader_of_logits(task: Task) -> str | None:
    """Return subject and verb for what takes the outputs as logits; None if nothing does."""
    for loss in task.chosen_losses:
        if loss.takes_logits:
            return f"loss {loss.label!r} takes"
    return _PREDICTIONS if task.reads_logits else None


def _effect(last: LastOperation, task: Task) -> str:
    """Return the words for the consequence of a squashing function before logits."""
    if last.squashing == "log-softmax" and task.learns in ("class", "mask"):
        return "the second one changes nothing"
    if task.learns == "labels":
        # sigmoid(0) = 0.5 and sigmoid(1) = 0.73: the range of a second sigmoid.
        effects: dict[Squashing, str] = {
            "softmax": "every label has a probability from 0.5 to 0.73",
            "sigmoid": "every label has a probability from 0.5 to 0.73",
            "ReLU": "no label ever has a probability below 0.5",
            "log-softmax": "no label ever has a probability above 0.5",
            "log-sigmoid": "no label ever has a probability above 0.5",
        }
        return effects.get(last.squashing, "probabilities never come near 0 or 1")
    if last.squashing == "ReLU":
        return "a class at 0 learns nothing, and none can be ruled out"
    return "probabilities never come near 0 or 1, and the network learns slowly"
