"""Take the output of one named layer while the network runs, as embeddings of the samples.

Letters: B samples, L tokens of the longest one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from finetune.data.batches import MASK, Batch
from finetune.errors import FinetuneError, ModelError, named
from finetune.models.shapes import describe

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Tap:
    """Takes the output of a layer."""

    layer: str
    _module: nn.Module

    @classmethod
    def at(cls, model: nn.Module, layer: str) -> "Tap":
        """Return a tap at a layer of a network.

        Raises:
            FinetuneError: the network has no such layer.
        """
        modules = dict(model.named_modules())
        modules.pop("")
        if layer not in modules:
            near = get_close_matches(layer, modules, _MOST_NAMED, cutoff=0.4)
            near = near or list(modules)[-_MOST_NAMED:]
            raise FinetuneError(
                f"the network has no layer {layer!r}",
                where="--embeddings",
                hint=f"nearest are {named(near)}; finetune plan CONFIG shows the layers",
            )
        return cls(layer, modules[layer])

    @contextmanager
    def listening(self) -> Iterator[list[Any]]:
        """Yield a list that receives the output of each call of the layer in the block.

        Only there: a pass that fails, or one that nobody asks for embeddings, leaves nothing.
        """
        taken: list[Any] = []

        def take(_: nn.Module, __: Any, output: Any) -> None:
            tensor = _only_tensor(output)
            # Copied at once: the next layer may change it in place, as `ReLU(inplace=True)` does.
            taken.append(output if tensor is None else tensor.detach().clone())

        hook = self._module.register_forward_hook(take)
        try:
            yield taken
        finally:
            hook.remove()

    def of(self, taken: list[Any], batch: Batch) -> list[Tensor]:
        """Return the output of the layer for each sample of the batch that ran, on the CPU.

        Of tokens, `(B, L, ...)`, each sample has its own without padding.

        Raises:
            ModelError: the layer ran several times or never, or its output is not of samples.
        """
        if len(taken) != 1:
            raise ModelError(f"layer {self.layer!r} ran {len(taken)} times for one batch")
        output = _only_tensor(taken[0])
        if output is None or not output.ndim or len(output) != len(batch):
            raise ModelError(
                f"the output of layer {self.layer!r} is {describe(taken[0])}, not a tensor with a "
                f"row for each of {len(batch)} samples"
            )
        rows = list(output.float().cpu())
        mask = batch.inputs.get(MASK)
        if mask is None or output.ndim < 3 or output.shape[1] != mask.shape[1]:
            return rows
        return [row[kept] for row, kept in zip(rows, mask.bool().cpu(), strict=True)]


def _only_tensor(output: Any) -> Tensor | None:
    """Return a tensor, or the only one in a tuple or mapping; None if there are others."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if not isinstance(output, tuple | list):
        return None
    tensors = [value for value in output if isinstance(value, Tensor)]
    return tensors[0] if len(tensors) == 1 else None
