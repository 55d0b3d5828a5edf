"""Number formats of the forward pass. In float32 everything here is a plain pass-through."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from finetune.errors import FinetuneError, ModelError
from finetune.optim.groups import explained_step
from finetune.randomness import seed_all

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Runs forward, backward, clipping and the optimizer's step in the wished number format.

    Args:
        kind: Format of the forward pass; weights and optimizer state stay in float32.
        device: Where the model is.

    Raises:
        FinetuneError: `float16` on a device without loss scaling.
    """

    __slots__ = ("_dtype", "_scaler", "device")

    def __init__(
        self, kind: Literal["float32", "bfloat16", "float16"], device: torch.device
    ) -> None:
        if kind == "float16" and device.type == "cpu":
            raise FinetuneError(
                "float16 needs a GPU",
                hint="use bfloat16 or float32 on a CPU",
                key=("train", "precision"),
            )
        self.device = device
        self._dtype = _DTYPES.get(kind)
        self._scaler = GradScaler(device.type, enabled=kind == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass and its loss run in."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def seed(self, seed: int) -> None:
        """Seed all that a step may draw from: torch's generators, numpy's and Python's own.

        Of torch's the CPU's and the device's: `torch.manual_seed` seeds every kind of device there
        is, at a twentieth of the cost of a small step.
        """
        seed_all(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to the trained parameters.

        Raises:
            ModelError: the graph of the loss was freed by an earlier backward pass, or no trained
                parameter has a part in it.
        """
        try:
            self._scaler.scale(loss).backward()
        except RuntimeError as error:
            raise _explained(error) from error

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients from the scale of the loss back to their own."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make the optimizer's step; in float16, leave it out when a gradient overflowed.

        Raises:
            FinetuneError: its settings give a number that float32, or Python, cannot hold. Some
                parameters may be updated already.
        """
        try:
            self._scaler.step(optimizer)
        except (OverflowError, RuntimeError) as error:
            raise explained_step(optimizer, error) from error
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must hold of the loss scale; empty when there is none."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: dict[str, float]) -> None:
        """Take up the loss scale of a checkpoint."""
        if state:
            self._scaler.load_state_dict(state)


def _explained(error: RuntimeError) -> Exception:
    """Return torch's two commonest complaints about a graph in words that name the remedy."""
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
