"""Check in every step that loss and gradients are finite; undo a step that failed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import NonFiniteError

_NAMED = 3
"""Tensors named in a message; the rest are counted."""


class StepGuard:
    """Checks a step before its update, and keeps copies to undo it.

    Args:
        model: The network; its mask and modes may change between steps.
        checks_gradients: Whether gradients must be finite. In float16 they may overflow: the loss
            scaler skips such an update and lowers its scale.
    """

    __slots__ = ("_buffers", "_checks_gradients", "_copies", "_found", "_model", "_one")

    def __init__(self, model: nn.Module, *, checks_gradients: bool) -> None:
        self._model, self._checks_gradients = model, checks_gradients
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        device = next(model.parameters()).device
        self._found = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def begin_phase(self) -> None:
        """Find the buffers that a forward pass may move: those of modules in training mode."""
        # By identity: a buffer may be registered in several modules.
        moving = {
            id(buffer): buffer
            for module in self._model.modules()
            if module.training
            for buffer in module.buffers(recurse=False)
        }
        self._buffers = list(moving.values())
        self._copies = [buffer.clone() for buffer in self._buffers]

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers that a forward pass of the phase may move."""
        return self._buffers

    def begin_step(self) -> None:
        """Copy the buffers that the step may change, so that it can be undone."""
        if self._buffers:
            # One call for all buffers: this is part of every step.
            torch._foreach_copy_(self._copies, self._buffers)

    def undo_step(self, optimizer: Optimizer) -> None:
        """Restore the buffers to what they were before the step, and drop its gradients."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        optimizer.zero_grad(set_to_none=True)

    def refuse_non_finite(self, step: int, loss: Tensor, optimizer: Optimizer) -> None:
        """Check loss and gradients, before the update.

        Raises:
            NonFiniteError: one of them is infinite or NaN. The message names which.
        """
        tensors = [loss]
        if self._checks_gradients:
            groups = optimizer.param_groups
            tensors += [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if self._all_finite(tensors):
            return
        # Only now one by one, to name them: each check waits for the device.
        gradients = _gradients(optimizer) if self._checks_gradients else ()
        wrong = [name for name, gradient in gradients if not gradient.isfinite().all()]
        if not loss.isfinite():
            what = f"the loss is {loss.item()}"
        else:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            what = f"gradients are not finite: {', '.join(wrong[:_NAMED])}{more}"
        raise NonFiniteError(
            f"{what} in step {step + 1}, before its update",
            hint="try a lower optimizer.lr, a warmup, or train.max_grad_norm; "
            "train.nan: skip or rollback goes on without such a window",
        )

    def _all_finite(self, tensors: list[Tensor]) -> bool:
        """Tell whether all tensors are finite, by one flag that is read from the device.

        It is the only value that leaves the device in a step. The kernel is that of torch's
        GradScaler. It also multiplies by one, which changes no bit.
        """
        for alike in _by_format(tensors):
            torch._amp_foreach_non_finite_check_and_unscale_(alike, self._found, self._one)
        if self._found.item() == 0:
            return True
        # The kernel sets the flag and never clears it.
        self._found.zero_()
        return False


def _gradients(optimizer: Optimizer) -> Iterable[tuple[str, Tensor]]:
    """Yield the gradients of trained parameters and rows, with their names."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.grad is not None:
                yield name, parameter.grad


def _by_format(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype, as the kernel needs them; complex ones as pairs of reals."""
    first = tensors[0].dtype
    # The usual case is cheap, as this is part of every step.
    if not first.is_complex and all(tensor.dtype is first for tensor in tensors):
        return [tensors]
    parts: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        parts.setdefault(real.dtype, []).append(real)
    return list(parts.values())
