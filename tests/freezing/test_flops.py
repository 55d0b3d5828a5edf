"""A training step costs what its frozen blocks leave of it, counted by torch itself."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.freezing.apply import apply_mask, hold_modes
from finetune.freezing.select import select
from finetune.models.inventory import take_inventory

# Shapes: B samples, T tokens, D features, H heads.
WIDTH, HEADS, BLOCKS = 128, 4, 12


class Block(nn.Module):
    """A transformer block that normalises before attention and before the hidden layer."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        )  # (B, H, T, D / H)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


def flops_of_a_step(frozen_blocks):
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.Sequential(*(Block() for _ in range(BLOCKS)))})
    selectors = [{"depth": f":{frozen_blocks}"}] if frozen_blocks else []
    frozen = select(selectors, take_inventory(model))
    apply_mask(model, frozen)
    hold_modes(model, frozen)
    model.train()
    with FlopCounterMode(display=False) as counter:
        model["blocks"](torch.randn(2, 16, WIDTH)).square().mean().backward()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def full():
    return flops_of_a_step(0)


@pytest.mark.parametrize(
    ("frozen_blocks", "ratio"), [(3, 0.833), (6, 0.667), (9, 0.500), (11, 0.389)]
)
def test_frozen_blocks_below_cost_a_forward_pass_alone(full, frozen_blocks, ratio):
    """A block costs one forward pass and two backward ones: (3 - 2 r) / 3 with a share r frozen."""
    assert round(flops_of_a_step(frozen_blocks) / full, 3) == ratio
