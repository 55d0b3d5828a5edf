"""Batch norms that normalise over the samples of all ranks in a pass: `train.sync_norm`.

torch's own SyncBatchNorm is not used: it has no kernel for CPUs, and it is a class of its own,
which a selector by type, the inventory and the key of the activation cache would see. Here the
modules stay what they are. During the steps of several ranks their call of `F.batch_norm` is
answered by the same formula over the samples of all, in torch's plain operations: one message in
the forward pass of a norm and one in its backward pass.

Shapes: N samples of this rank, C channels, `...` positions; n values of a channel over all ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from finetune.distributed import Link
from finetune.errors import ModelError


class SyncedNorms:
    """Lets the batch norms of a network that train normalise over the samples of all ranks.

    Args:
        link: To the other ranks.
        model: The network.
        is_wanted: Whether the config asks for it; without, and in one process, nothing is done.
    """

    __slots__ = ("_is_wanted", "_link", "_model", "_norms")

    def __init__(self, link: Link, model: nn.Module, *, is_wanted: bool) -> None:
        self._link, self._model = link, model
        self._is_wanted = is_wanted and link.ranks.is_several
        self._norms: dict[str, nn.Module] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether all ranks must make equally many passes in a step."""
        return self._is_wanted

    @property
    def names(self) -> list[str]:
        """Names of the norms that do so in the present phase."""
        return list(self._norms)

    @property
    def buffers(self) -> list[Tensor]:
        """Running statistics of these norms: they move alike on every rank."""
        return [buffer for norm in self._norms.values() for buffer in norm.buffers(recurse=False)]

    def begin_phase(self) -> None:
        """Find the batch norms that normalise by the batch in the present phase."""
        if self._is_wanted:
            self._norms = {
                name: module
                for name, module in self._model.named_modules()
                if isinstance(module, _BatchNorm) and module.training
            }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Normalise over all ranks in the block, in which every rank makes the same passes.

        Only there: probes and the like run the network on one rank alone.
        """
        # As in the activation cache: an attribute hides the method of the class. One that is there
        # already is restored.
        own = {name: vars(norm).get("forward") for name, norm in self._norms.items()}
        for name, norm in self._norms.items():
            vars(norm)["forward"] = partial(self._forward, name, norm.forward)
        try:
            yield
        finally:
            for name, norm in self._norms.items():
                del vars(norm)["forward"]
                if own[name] is not None:
                    vars(norm)["forward"] = own[name]

    def _forward(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the norm's own code: a class of timm's also has an activation in it."""
        over_ranks = _OverRanks(self._link)
        with over_ranks:
            outputs = forward(*args, **kwargs)
        if not over_ranks.has_answered:
            raise ModelError(
                f"batch norm {name!r} does not call F.batch_norm, so its statistics cannot be "
                "those of all processes",
                hint="leave out sync_norm, or hold its statistics: "
                "freeze.modules.trained_norm: eval",
                key=("train", "sync_norm"),
            )
        return outputs


class _OverRanks(TorchFunctionMode):
    """Answers `F.batch_norm` by statistics over all ranks."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link, self.has_answered = link, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        self.has_answered = True
        return _batch_norm(self.link, *args, **(kwargs or {}))


def _batch_norm(
    link: Link,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise `(N, C, ...)` as `F.batch_norm` does, over the samples of all ranks.

    Raises:
        ModelError: all ranks together have a single value of a channel.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # Half precision: torch's own kernel takes the statistics in float32 as well.
    values = input if input.dtype in (torch.float32, torch.float64) else input.float()
    mean, variance, count = _statistics(link, values.detach())
    if count == 1:
        raise ModelError(
            "a batch norm that trains needs more than one value of each channel, and all "
            "processes together have one",
            hint="a larger train.batch_size, or train.drop_last: true",
        )
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        # Unbiased, as torch keeps it.
        unbiased = variance * (count / (count - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt().to(values.dtype)
    done = _Normalise.apply(values, weight, bias, mean.to(values.dtype), scale, count, link)
    return done.to(input.dtype)  # type: ignore[no-any-return]


def _statistics(link: Link, values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and variance `(C,)` over all ranks, in float64, and the count n.

    Means and squared deviations of the ranks are joined, not sums of squares: those lose digits
    where a mean is large beside its deviation (Chan, Golub, LeVeque 1979).
    """
    axes = [axis for axis in range(values.dim()) if axis != 1]
    own = values.numel() // values.shape[1]
    variance, mean = (one.double() for one in torch.var_mean(values, axes, correction=0))
    row = torch.cat([mean, variance * own, mean.new_tensor([own])])
    means, squares, counts = link.rows(row).split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    whole = (means * counts).sum(0) / count
    squares = squares + counts * (means - whole).square()
    return whole, squares.sum(0) / count, int(count)


class _Normalise(torch.autograd.Function):
    """`y = (x - mean) * scale * weight + bias`, where mean and scale depend on all x of all ranks.

    With g the gradient of y and x̂ = (x - mean) * scale, sums over all values of all ranks:
    `dx = weight * scale * (g - Σg / n - x̂ * Σ(g x̂) / n)` (Ioffe and Szegedy 2015).
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: int,
        link: Link,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, scale)
        ctx.count, ctx.link = count, link
        done = (values - _wide(mean, values)) * _wide(scale, values)
        if weight is not None:
            done = done * _wide(weight, values)
        return done if bias is None else done + _wide(bias, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        values, weight, mean, scale = ctx.saved_tensors
        axes = [axis for axis in range(values.dim()) if axis != 1]
        normal = (values - _wide(mean, values)) * _wide(scale, values)
        of_bias, of_weight = gradient.sum(axes), (gradient * normal).sum(axes)
        of_values = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([of_bias, of_weight]).double()
            ctx.link.add(sums)
            shift, tilt = (sums / ctx.count).to(values.dtype).chunk(2)
            of_values = gradient - _wide(shift, values) - normal * _wide(tilt, values)
            factor = scale if weight is None else scale * weight
            of_values = of_values * _wide(factor, values)
        # Of this rank alone: those of parameters are added up when the window is through.
        wants_weight, wants_bias = ctx.needs_input_grad[1:3]
        return (
            of_values,
            of_weight if wants_weight else None,
            of_bias if wants_bias else None,
            *(None,) * 4,
        )


def _wide(channels: Tensor, values: Tensor) -> Tensor:
    """Return `(C,)` in a shape that fits `(N, C, ...)`."""
    return channels.view(1, -1, *(1,) * (values.dim() - 2))
