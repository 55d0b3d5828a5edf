"""The network that notes are about, with its task and data, and the words for its layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.config.model import Layer
from finetune.config.run import RunConfig
from finetune.data.batches import Batch, Samples
from finetune.errors import Key
from finetune.models.declared import Network
from finetune.models.layer_calls import is_helper_of
from finetune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Subject:
    """The network under examination, in evaluation mode, with its task and data."""

    config: RunConfig
    model: Network
    task: Task
    samples: Samples
    device: torch.device

    def batch(self, count: int, length: int | None = None) -> Batch:
        """Return the first `count` samples, or all if there are fewer."""
        return self.fetched(torch.arange(min(count, len(self.samples))), length)

    def fetched(self, rows: Tensor, length: int | None = None) -> Batch:
        """Return the samples at `rows`."""
        return self.samples.fetch(rows, length=length).to(self.device)

    def placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the columns on the device of the network."""
        return {name: values.to(self.device) for name, values in inputs.items()}

    def label(self, module: str) -> str:
        """Return the words for a module in a message."""
        return f"layer {module!r} ({type(self.model.get_submodule(module)).__name__})"

    def layer(self, module: str) -> tuple[Key, Layer | None]:
        """Return key and node of the config's layer that a module lies in."""
        child = module.partition(".")[0]
        named = {node.name or str(n): n for n, node in enumerate(self.config.model.layers)}
        # Helpers of a layer, such as pooling, are modules of their own beside it.
        position = named.get(child)
        if position is None:
            position = next((n for name, n in named.items() if is_helper_of(name, child)), None)
        if position is not None:
            return ("model", "layers", position), self.config.model.layers[position]
        return ("model", "layers"), None
