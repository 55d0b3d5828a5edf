"""Take the output of one named layer while the network runs, as embeddings of the samples.

Letters: B samples, L tokens of the longest one.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from finetune.data.batches import MASK, Batch
from finetune.errors import FinetuneError, ModelError, named
from finetune.models.shapes import describe

_MOST_NAMED = 5


@dataclass(slots=True)
class Tap:
    """Keeps the latest output of a layer."""

    layer: str
    _found: list[Any] = field(default_factory=list)
    """Outputs of the calls since the last batch."""

    @classmethod
    def at(cls, model: nn.Module, layer: str) -> "Tap":
        """Return a tap at a layer of a network; a hook of the layer stays with the network.

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
        tap = cls(layer)
        modules[layer].register_forward_hook(tap._take)
        return tap

    def _take(self, _: nn.Module, __: Any, output: Any) -> None:
        self._found.append(output)

    def of(self, batch: Batch) -> list[Tensor]:
        """Return the output of the layer for each sample of the batch that just ran, on the CPU.

        Of tokens, `(B, L, ...)`, each sample has its own without padding.

        Raises:
            ModelError: the layer ran several times or never, or its output is not of samples.
        """
        found, self._found = self._found, []
        if len(found) != 1:
            raise ModelError(f"layer {self.layer!r} ran {len(found)} times for one batch")
        output = _only_tensor(found[0])
        if output is None or not output.ndim or len(output) != len(batch):
            raise ModelError(
                f"the output of layer {self.layer!r} is {describe(found[0])}, not a tensor with a "
                f"row for each of {len(batch)} samples"
            )
        rows = list(output.detach().float().cpu().clone())
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
