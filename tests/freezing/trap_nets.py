"""Small networks that hold what freezing stumbles over, for layers of `type: import`."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class Tied(nn.Module):
    """A hidden layer between a matrix and the same matrix transposed."""

    def __init__(self, width=4):
        super().__init__()
        self.down = nn.Linear(width, 3)
        self.up = nn.Linear(3, width, bias=False)
        self.up.weight = nn.Parameter(torch.randn(width, 3))
        self.shared = nn.Linear(3, width, bias=False)
        self.shared.weight = self.up.weight

    def forward(self, features):
        hidden = torch.tanh(self.down(features))
        return self.up(hidden) + self.shared(hidden.square())


class Quantised(nn.Module):
    """A linear layer whose weight is a parameter of bytes, with a scale that trains."""

    def __init__(self, width=4):
        super().__init__()
        codes = torch.randint(-9, 10, (width, width), dtype=torch.int8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("zero", torch.zeros(width, dtype=torch.int8))
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, features):
        weight = (self.codes - self.zero).to(features.dtype) * self.scale
        return features @ weight


class Lookup(nn.Module):
    """An embedding with `max_norm`, whose forward pass rescales its weight."""

    def __init__(self, max_norm=0.1):
        super().__init__()
        self.table = nn.Embedding(5, 4, max_norm=max_norm)

    def forward(self, features):
        return features + self.table((features[:, 0] > 0).long())


class Lazy(nn.Module):
    """A linear layer that finds its width by itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LazyLinear(4)

    def forward(self, features):
        return self.inner(features)


class Creeping(nn.Module):
    """A linear layer that changes its own bias in training, once it has been called often."""

    def __init__(self, calls=5, step=0.25):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.calls, self.step, self.called = calls, step, 0

    def forward(self, features):
        self.called += torch.is_grad_enabled()
        if self.called > self.calls:
            self.inner.bias.data[1] += self.step
        return self.inner(features)


class Forgetful(nn.Module):
    """Two linear layers, of which the second has a part in the first two steps alone."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(4, 4), nn.Linear(4, 4)
        self.called = 0

    def forward(self, features):
        self.called += self.training and torch.is_grad_enabled()
        output = self.always(features)
        return output + self.sometimes(features) if self.called <= 3 else output


class Dropping(nn.Module):
    """A linear layer and attention, which drop by functions; around what moves buffers."""

    def __init__(self, width=4):
        super().__init__()
        self.inner, self.normed = nn.Linear(width, width), spectral(width)
        self.attention = nn.MultiheadAttention(width, 1, dropout=0.5, batch_first=True)
        self.statistics = nn.BatchNorm1d(width)

    def forward(self, features):
        dropped = nn.functional.dropout(self.inner(features), 0.5, self.training)
        tokens = self.normed(features).unflatten(-1, (-1, 1)).repeat(1, 1, features.shape[-1])
        attended, _ = self.attention(tokens, tokens, tokens)
        return self.statistics(dropped + attended.mean(1))


def spectral(width=4):
    """Make a layer under spectral norm as a parametrisation."""
    return parametrizations.spectral_norm(nn.Linear(width, width))


def old_spectral(width=4):
    """Make a layer under spectral norm as a hook, as torch had it first."""
    layer = nn.utils.spectral_norm(nn.Linear(width, width))
    for _ in range(15):  # it begins with random vectors, by which the weight may be huge
        layer(torch.ones(1, width))
    return layer


def weight_norm(width=4):
    """Make a layer under weight norm as a parametrisation."""
    return parametrizations.weight_norm(nn.Linear(width, width))


def old_weight_norm(width=4):
    """Make a layer under weight norm as a hook, as torch had it first."""
    return nn.utils.weight_norm(nn.Linear(width, width))


class _Symmetric(nn.Module):
    def forward(self, matrix):
        return matrix.triu() + matrix.triu(1).transpose(-1, -2)


def symmetric(width=4):
    """Make a layer whose weight is symmetric by a parametrisation of one's own."""
    layer = nn.Linear(width, width)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return layer
