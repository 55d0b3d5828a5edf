"""Outputs that a loss or metric cannot take: their error, with the layer that would fit."""

from typing import Any

from torch import Tensor

from finetune.errors import ModelError, is_out_of_memory
from finetune.models.shapes import describe, first_line


class UnfitOutputsError(ValueError):
    """Outputs that a loss or metric cannot take, with the layer that gives others.

    Args:
        message: What is needed.
        hint: The remedy.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def misfit(name: str, outputs: Any, target: Any, error: Exception) -> ModelError:
    """Return the error of a loss or metric that cannot take what the network gives.

    Memory that runs out is no misfit: then `error` itself is raised, and the run cuts its passes.
    """
    if is_out_of_memory(error):
        raise error
    return ModelError(
        # torch's own text may run over many lines; a message has one.
        f"{name} cannot take {describe(outputs)} with targets {describe(target)}: "
        f"{first_line(error)}",
        hint=error.hint if isinstance(error, UnfitOutputsError) else _remedy(outputs, target),
        key=("model", "layers"),
    )


def one_tensor(outputs: Any) -> Tensor:
    """Return outputs that are one tensor; raise `ValueError` for others, such as a dict."""
    if not isinstance(outputs, Tensor):
        raise ValueError("one tensor is needed")
    return outputs


def _remedy(outputs: Any, target: Any) -> str:
    """Return a hint: with which layer the network gives outputs that fit the targets."""
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
        return "the last layer must give what the task learns"
    if not target.is_floating_point():
        width = "classes"
    else:
        width = str(target.shape[1]) if target.ndim == 2 else "1"
    last = f"{{name: head, type: Linear, out_features: {width}}}"
    if target.ndim == 3 and not target.is_floating_point():
        last = "{name: head, type: Conv2d, out_channels: classes, kernel_size: 1}"
    if outputs.ndim > 2 and target.ndim <= 2:
        return f"give one row a sample: pool over the other axes first, then end with {last}"
    return f"the last layer must give what the task learns: end the network with {last}"
