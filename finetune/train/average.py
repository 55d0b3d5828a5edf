"""The average of the trained parameters over the steps, which is what a run evaluates and keeps.

    average(t) = decay * average(t - 1) + (1 - decay) * weights(t)

It begins with a parameter's own value when the parameter begins to train, and ends when a phase
freezes it: from then on the parameter is used as it is. So a frozen parameter costs nothing, and
the activation cache, which depends on frozen parameters alone, is not concerned. Buffers are not
averaged, as by default in torch's `AveragedModel`: evaluation uses them as they are.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from finetune.config.train import TrainConfig
from finetune.errors import FinetuneError
from finetune.freezing.plan import Plan
from finetune.freezing.rows import tensor_of


@dataclass(slots=True)
class Average:
    """The averages of the parameters that train in the present phase; without a decay it is off."""

    live: Mapping[str, Tensor]
    """The parameters and row slices that train in some phase, by name. The network holds them."""
    decay: float | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The averages by name."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        plan: Plan,
        settings: TrainConfig,
        parts: Mapping[str, nn.Parameter] = MappingProxyType({}),
    ) -> Self:
        """Return the average of a run that has not begun.

        Args:
            model: The network, on its device.
            plan: The phases.
            settings: `train:` of the config.
            parts: What this process holds of parameters that several share.
        """
        parameters = dict(model.named_parameters()) | dict(parts)
        live = {name: tensor_of(parameters, name).detach() for name in plan.ever_trained}
        return cls(live, None if settings.average is None else settings.average.decay)

    def begin_phase(self, trained: Collection[str]) -> None:
        """Drop the averages of what the phase freezes; begin those of what it thaws.

        Args:
            trained: Names that the phase trains.
        """
        if self.decay is None:
            return
        self.tensors = {
            name: self.tensors[name] if name in self.tensors else tensor.clone()
            for name, tensor in self.live.items()
            if name in trained
        }

    def update(self) -> None:
        """Take in the weights after a step."""
        if self.decay is None or not self.tensors:
            return
        live = [self.live[name] for name in self.tensors]
        # All tensors in one call, which a GPU runs as a few kernels.
        get_ema_multi_avg_fn(self.decay)([*self.tensors.values()], live, None)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Run the block with the averages in the network; then put back the same bits as before."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def take(self) -> None:
        """Write the averages into the network for good; they go on from there."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                self.live[name].copy_(tensor)

    def drop(self) -> None:
        """Forget all averages: the network's own weights are used."""
        self.tensors = {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take copies of the averages of a checkpoint, in place of the present ones."""
        self.tensors = {
            name: tensors[name].to(own.device, copy=True)
            for name, own in self.live.items()
            if name in tensors
        }

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange network and averages: one tensor at a time, to save memory."""
        # Copied, not rebound: row slices and the optimizer share the memory of the parameters.
        for name, tensor in self.tensors.items():
            own = self.live[name].clone()
            self.live[name].copy_(tensor)
            tensor.copy_(own)


def refuse_coarse(plan: Plan, settings: TrainConfig) -> None:
    """Raise if an average would be kept in numbers too coarse for its small steps.

    Raises:
        FinetuneError: some trained parameter has 16 bits.
    """
    # A thousandth of a difference is lost in the rounding of 8 or 11 bits.
    coarse = [p for p in plan.inventory if p.floating and p.dtype in ("bfloat16", "float16")]
    trained = set(plan.ever_trained)
    for param in coarse:
        if settings.average is not None and param.name in trained:
            raise FinetuneError(
                f"an average with decay {settings.average.decay:g} would stand still in "
                f"{param.dtype}, the format of {param.name!r}",
                hint="load the network in float32, or leave out train.average",
                key=("train", "average"),
            )
