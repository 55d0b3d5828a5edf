"""Gradient norms: of all gradients, clipped or not, and of each of several losses alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import ModelError, is_out_of_memory


def norm_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm over the gradients of parameters, `()`."""
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])


def clip_gradients(
    optimizer: Optimizer,
    limit: float | None,
    norm_of: Callable[[Sequence[nn.Parameter]], Tensor] = norm_of,
) -> Tensor:
    """Return the norm over all gradients; scale them in place to `limit` if they exceed it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # The two halves of `clip_grad_norm_`: without a limit the norm alone is wanted, for the logs.
    norm = norm_of(parameters)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class LossNorms:
    """Adds up each loss's own gradient over the micro-batches of one step.

    Call `add` before the backward pass of the step: the graph is retained for that pass.

    Args:
        names: Names of the losses.
        parameters: The trained parameters; none to measure nothing.
    """

    __slots__ = ("_names", "_parameters", "_sums")

    def __init__(self, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        self._names = names
        self._parameters = list(parameters)
        self._sums: list[list[Tensor]] = []

    def add(self, shares: Sequence[Tensor]) -> None:
        """Add the gradients of what one micro-batch adds to the mean of each loss, `()` each."""
        if not self._parameters:
            return
        found = [self._gradients(share) for share in shares]
        old = self._sums or [[torch.zeros_like(g) for g in gradients] for gradients in found]
        self._sums = [
            [a + b for a, b in zip(sums, gradients, strict=True)]
            for sums, gradients in zip(old, found, strict=True)
        ]

    def result(self) -> dict[str, Tensor]:
        """Return for each loss the norm over all parameters; empty if nothing was measured."""
        norms = [torch.nn.utils.get_total_norm(sums) for sums in self._sums]
        # Not strict: there are names and no norms where nothing was measured.
        return dict(zip(self._names, norms, strict=False))

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a loss for each parameter; zeros for one it does not reach."""
        try:
            gradients = torch.autograd.grad(
                loss, self._parameters, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"a loss has no gradient: {error}", key=("task",)) from error
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
