"""How much each block of the network learns: gradient, size of an update, way from the start.

Of a large tensor only some weights are looked at, evenly spaced: a copy of all of them would take
as much memory as the network. The figures of tensors with more weights than that are estimates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.block_names import by_block
from finetune.models.inventory import ParamInfo

MOST_WEIGHTS = 4096
"""Weights of a tensor that are looked at."""
MOST_BLOCKS = 40
"""Blocks with curves of their own, counted from the output."""

Values = Mapping[str, Sequence[Tensor]]
"""For each block, some weights of each of its tensors."""


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """Looks at the parameters of each block."""

    blocks: Mapping[str, Sequence[nn.Parameter]]
    """The parameters of each block, from the input on."""
    at_start: Values
    """Their values before step 0."""

    @classmethod
    def of(cls, model: nn.Module, inventory: Sequence[ParamInfo]) -> "BlockFigures":
        """Return the blocks of a network before any checkpoint is loaded into it."""
        parameters = dict(model.named_parameters())
        blocks = {}
        for block, params in by_block(inventory).items():
            # Row slices of one parameter share it.
            names = dict.fromkeys(param.name.partition("[")[0] for param in params)
            blocks[block] = [parameters[name] for name in names if name in parameters]
        return cls(blocks, _some(blocks))

    def gradients(self) -> dict[str, Tensor]:
        """Return the norm over the gradients of each block that has any, `()` each."""
        return {
            block: torch.nn.utils.get_total_norm(gradients)
            for block, params in self._last_blocks()
            if (gradients := [param.grad for param in params if param.grad is not None])
        }

    def values(self) -> Values:
        """Return copies of some weights of the blocks that train."""
        return _some(
            {
                block: params
                for block, params in self._last_blocks()
                if any(param.requires_grad for param in params)
            }
        )

    def ratios(self, before: Values) -> dict[str, Tensor]:
        """Return ‖w - w'‖ / ‖w'‖ of each block, `()` each; w' are the values `before`.

        A ratio of about 1e-3 is usual (Karpathy, makemore part 3, "update to data ratio").
        """
        now = _some({block: self.blocks[block] for block in before})
        return {block: _way(now[block], before[block]) for block in before}

    def moved(self) -> dict[str, float]:
        """Return ‖w - w₀‖ / ‖w₀‖ of each block; w₀ are the values before step 0."""
        now = _some(self.blocks)
        return {block: float(_way(now[block], self.at_start[block])) for block in self.blocks}

    def histograms(self) -> dict[str, np.ndarray]:
        """Return some weights of each block that trains now, as one array each."""
        return {
            block: torch.cat([part.float().cpu() for part in parts]).numpy()
            for block, parts in self.values().items()
        }

    def _last_blocks(self) -> list[tuple[str, Sequence[nn.Parameter]]]:
        return list(self.blocks.items())[-MOST_BLOCKS:]


def _some(blocks: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, list[Tensor]]:
    """Return copies of some weights of each parameter, evenly spaced."""
    return {
        block: [
            # Rounded up, so that there are never more; `or 1` for a parameter without numbers.
            param.detach().flatten()[:: -(-param.numel() // MOST_WEIGHTS) or 1].clone()
            for param in params
        ]
        for block, params in blocks.items()
    }


def _way(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Return the norm of the differences, in units of the norm of what was before."""
    if not now:
        return torch.zeros(())
    pairs = zip(now, before, strict=True)
    # In float32, since the squares of small differences are 0 in float16.
    way = torch.nn.utils.get_total_norm([a.float() - b.float() for a, b in pairs])
    norm = torch.nn.utils.get_total_norm([b.float() for b in before])
    # Nothing moved is 0, also from weights that are all 0.
    return torch.where(way == 0, way, way / norm)
