"""Networks that read the parameters of a block without calling the block, for `type: import`."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, inputs):
        return torch.tanh(self.norm(self.linear(inputs)))

    def by_method(self, inputs):
        return torch.tanh(self.linear(inputs))


class Outside(nn.Module):
    """Two blocks and a head; `how` says in which way the first block is used."""

    def __init__(self, how="number", width=4):
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.head = nn.Linear(width, 3)

    def forward(self, features):
        first, second = self.blocks
        match self.how:
            case "method":
                hidden = first.by_method(features)
            case "weight":
                hidden = F.linear(features, weight=first.linear.weight)
            case "number":
                hidden = first(features) * (1 + first.linear.weight.detach().abs().mean().item())
            case "in evaluation":
                hidden = first(features) if self.training else first.by_method(features)
            case "shape":
                hidden = first(features).to(first.linear.weight.dtype)
                hidden = hidden * first.linear.weight.size(0) * first.linear.weight.shape[1]
            case _:
                hidden = first(features)
        return self.head(second(hidden))
