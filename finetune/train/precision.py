"""Number formats of the forward pass. In float32 every method just passes through."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from finetune.errors import FinetuneError, Key, ModelError
from finetune.optim.groups import explained_step
from finetune.randomness import seed_all

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Runs forward, backward, clipping and the optimizer's step in one number format.

    Args:
        kind: Format of the forward pass; weights and optimizer state stay in float32.
        device: Where the model is.
        key: The config key that names the format.

    Raises:
        FinetuneError: `float16` on a device without loss scaling.
    """

    __slots__ = ("_dtype", "_scaler", "device")

    def __init__(
        self,
        kind: Literal["float32", "bfloat16", "float16"],
        device: torch.device,
        *,
        key: Key = ("train", "precision"),
    ) -> None:
        if kind == "float16" and device.type == "cpu":
            raise FinetuneError(
                "float16 needs a GPU",
                hint="use bfloat16 or float32 on a CPU",
                key=key,
            )
        self.device = device
        self._dtype = _DTYPES.get(kind)
        # A scaler that is not enabled passes everything through, so the step needs no `if`.
        self._scaler = GradScaler(device.type, enabled=kind == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass and its loss run in."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def seed(self, seed: int) -> None:
        """Seed the generators that a step may use: those of torch, numpy and Python.

        Of torch, only those of the CPU and of this device. `torch.manual_seed` seeds every kind of
        device, which takes a twentieth of the time of a small step.
        """
        seed_all(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to the trained parameters.

        Raises:
            ModelError: an earlier backward pass has freed the graph of the loss, or the loss
                depends on no trained parameter.
        """
        try:
            self._scaler.scale(loss).backward()
        except RuntimeError as error:
            raise _explained(error) from error

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the loss scale, in place; do nothing without one."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make the optimizer's step; in float16, skip it if a gradient overflowed.

        Raises:
            FinetuneError: its settings give a number too large for float32 or Python. Some
                parameters may be updated already.
        """
        try:
            self._scaler.step(optimizer)
        except (OverflowError, RuntimeError) as error:
            raise explained_step(optimizer, error) from error
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Return the state of the loss scale for a checkpoint; empty without one."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: dict[str, float]) -> None:
        """Load the state of the loss scale from a checkpoint."""
        if state:
            self._scaler.load_state_dict(state)


def _explained(error: RuntimeError) -> Exception:
    """Return an error that names the remedy for two common errors of autograd; else `error`."""
    # autograd raises a plain RuntimeError for both, so they are told apart by its text.
    text = str(error)
    if "backward through the graph a second time" in text:
        return ModelError(
            "the loss reaches back into a graph whose buffers an earlier backward pass has freed: "
            "the network or the loss keeps a tensor from one step to the next",
            hint="detach() what is kept between steps; retain_graph=True would keep every graph "
            "alive, and is right only for several backward passes over one forward pass",
        )
    if "does not require grad" in text:
        return ModelError(
            "the loss depends on no trained parameter, so there is nothing to learn",
            hint="look where the graph is cut: finetune inspect CONFIG",
        )
    return error
