"""Add up the gradients of a window over the ranks, with one message.

DDP of torch is not used. It divides by the number of ranks before it adds, and the loss here is
divided by the samples of the whole window already; it wants every rank to reach the same
parameters in the same order, and a window may have fewer micro-batches than there are ranks; and
it does not synchronise a parameter that thaws after it was wrapped, nor tell. One sum of what
trains now, made when the window is through, has none of this, and its bits are those of one
process: of two addends the order does not matter. The price: the message does not overlap with the
backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.distributed import Link
from finetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """What the ranks tell each other with the gradients of a window."""

    loss: float | Tensor = 0.0
    """Sum of the shares of this rank's micro-batches, `()`."""
    found: float | Tensor = 0.0
    """Count that a loss of the user's own gave with its sums."""
    is_out_of_memory: bool = False
    has_failed: bool = False
    """Whether the rank ends with an error of its own."""


class GradientSum:
    """Adds up the gradients of the parameters that train in a phase.

    The memory is that of one more gradient of all of them, and is kept from step to step.

    Args:
        parameters: All parameters that train in the phase, in the same order on every rank.
        device: Where the network is.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._parameters = list(parameters)
        kinds = dict.fromkeys([torch.float32, *(p.dtype for p in self._parameters)])
        self._tail = len(self._parameters) + 4
        sizes = {kind: sum(p.numel() for p in parameters if p.dtype == kind) for kind in kinds}
        sizes[torch.float32] += self._tail
        self._flat = {
            kind: torch.zeros(size, dtype=kind, device=device) for kind, size in sizes.items()
        }
        self._views = self._views_of()

    @property
    def num_bytes(self) -> int:
        """Bytes that each rank gives to a sum."""
        return sum(flat.numel() * flat.element_size() for flat in self._flat.values())

    def add(self, link: Link, end: WindowEnd) -> list[float]:
        """Replace the gradients by their sums over the ranks; return the sums of `end`.

        A parameter that no rank has a gradient of keeps none, so the optimizer skips it.

        Args:
            link: To the other ranks.
            end: What this rank tells. If it failed, its gradients are left out.

        Raises:
            ModelError: a gradient is sparse.
        """
        is_through = not (end.is_out_of_memory or end.has_failed)
        has = [is_through and parameter.grad is not None for parameter in self._parameters]
        self._fill(has)
        tail = self._flat[torch.float32][-self._tail :]
        numbers = [float(is_there) for is_there in has]
        numbers += [0.0, 0.0, float(end.is_out_of_memory), float(end.has_failed)]
        tail.copy_(torch.tensor(numbers))
        if is_through:
            tail[-4], tail[-3] = end.loss, end.found
        for flat in self._flat.values():
            link.add(flat)
        *num_there, loss, found, out_of_memory, failed = tail.tolist()
        self._hand_back(num_there)
        return [loss, found, out_of_memory, failed]

    def loss(self) -> Tensor:
        """Return the summed loss of the last window, `()`."""
        return self._flat[torch.float32][-4].clone()

    def _views_of(self) -> list[Tensor]:
        """Return the place of each parameter in the message, in its shape."""
        begins, views = dict.fromkeys(self._flat, 0), []
        for parameter in self._parameters:
            kind, begin = parameter.dtype, begins[parameter.dtype]
            begins[kind] = begin + parameter.numel()
            views.append(self._flat[kind][begin : begins[kind]].view(parameter.shape))
        return views

    def _fill(self, has: Sequence[bool]) -> None:
        """Copy the gradients into the message, zeros for those that this rank has none of."""
        places, gradients = [], []
        for parameter, view, is_there in zip(self._parameters, self._views, has, strict=True):
            if not is_there:
                view.zero_()
                continue
            assert parameter.grad is not None
            if parameter.grad.layout != torch.strided:
                raise ModelError(
                    "gradients in sparse form are not added up over several processes",
                    hint="sparse: false in the layer, or train in one process",
                )
            places.append(view)
            gradients.append(parameter.grad)
        if places:
            torch._foreach_copy_(places, gradients)

    def _hand_back(self, num_there: Sequence[float]) -> None:
        """Give each parameter its sum, if some rank has had a gradient of it."""
        places, gradients = [], []
        for parameter, view, number in zip(self._parameters, self._views, num_there, strict=True):
            if number == 0:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = view.clone()
            else:
                places.append(view)
                gradients.append(parameter.grad)
        if places:
            torch._foreach_copy_(gradients, places)
