"""What several tests of models share: a network from plain config values, and a user's package."""

import sys

import pytest
import torch

from finetune.config.model import ModelConfig
from finetune.models.declared import TensorSpec, build_network

IMAGE = {"image": TensorSpec((1, 8, 8), "float32")}

NETS = '''
import torch
from torch import nn


class Looped(nn.Module):
    """Runs its layer as often as the first sample says."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        print("building")
        self.step = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for _ in range(1 + int(x[0, 0].abs())):
            x = torch.relu(self.step(x))
        return self.head(x)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, right, left):
        return {"difference": self.scale * (left - right)}


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise ZeroDivisionError("the user's own fault")


def give_a_number():
    return 3
'''


@pytest.fixture(scope="session")
def build():
    """Return a function that builds a network from the plain values of a config."""

    def build_from(*layers, inputs=None, classes=10, head=None, seed=0, trust=(), **model):
        config = ModelConfig.model_validate({"layers": list(layers), **model})
        columns = IMAGE if inputs is None else inputs
        return build_network(config, columns, classes=classes, head=head, seed=seed, trust=trust)

    return build_from


@pytest.fixture
def user_package(tmp_path, monkeypatch):
    """Put a package with networks of a user's own on the path; return its name."""
    package = tmp_path / "users_nets"
    package.mkdir()
    (package / "__init__.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_nets"
    sys.modules.pop("users_nets", None)


@pytest.fixture
def same_parameters():
    """Return a function that says whether two networks hold bit-equal tensors."""

    def are_same(one, other):
        ours, theirs = one.state_dict(), other.state_dict()
        return ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        )

    return are_same
