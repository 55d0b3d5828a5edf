"""Weights and state of a user's own layer that no checkpoint would hold are told before a run."""

import pytest
import torch
from torch import nn

from finetune.train.build import build_parts, lints_of


class InAList(nn.Module):
    """Its first layer is no part of it for PyTorch."""

    def __init__(self):
        super().__init__()
        self.firsts, self.head = [nn.Linear(4, 4)], nn.Linear(4, 3)

    def forward(self, features):
        return self.head(self.firsts[0](features))


class LooseTensor(InAList):
    def __init__(self):
        super().__init__()
        self.firsts = nn.ModuleList(self.firsts)
        self.factors = {"scale": torch.ones(4, requires_grad=True)}

    def forward(self, features):
        return super().forward(features * self.factors["scale"])


class OwnStatistics(nn.Module):
    """Keeps a running mean as a plain attribute."""

    def __init__(self):
        super().__init__()
        self.mean, self.head = torch.zeros(4), nn.Linear(4, 3)

    def forward(self, features):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * features.mean(0)
        return self.head(features - self.mean)


class Honest(nn.Module):
    """Counts, keeps what it gave, lists its layers, and has statistics in buffers."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.all_layers = [self.norm, self.head]
        self.calls, self.last, self.scale = 0, None, torch.full((4,), 2.0)

    def forward(self, features):
        self.calls += 1
        self.last = self.head(self.norm(features * self.scale))
        return self.last


class Drawing(OwnStatistics):
    """Its outputs differ from call to call anyway."""

    def forward(self, features):
        return super().forward(features + torch.randn_like(features))


class MovesItself(Honest):
    """Moves a weight of its own as it is called."""

    def forward(self, features):
        if self.training:
            self.head.weight.data.mul_(0.5)
        return super().forward(features)


@pytest.fixture
def config_of(small_config):
    """Return a config of a network of the user's own."""

    def config(kind):
        layers = [{"name": "own", "type": "import", "path": f"{__name__}:{kind.__name__}"}]
        return small_config(model={"layers": layers}, trust=(__name__.partition(".")[0],))

    return config


@pytest.fixture
def told(config_of):
    """Return the notes on a network of the user's own."""

    def notes(kind):
        config = config_of(kind)
        return [lint.message for lint in lints_of(config, build_parts(config))["network"]]

    return notes


@pytest.mark.parametrize(
    ("kind", "place"), [(InAList, "2 tensors of weights in 'firsts'"), (LooseTensor, "'factors'")]
)
def test_weights_that_are_no_part_of_the_network_are_told(told, kind, place):
    (note,) = told(kind)
    assert place in note
    assert "not trained, saved or proven" in note


def test_state_that_no_checkpoint_holds_is_told(told):
    (note,) = told(OwnStatistics)
    assert note.startswith("training changes 'mean' of layer 'own' (OwnStatistics)")


@pytest.mark.parametrize("kind", [Honest, Drawing])
def test_what_changes_no_output_or_cannot_be_told_apart_is_not_told(told, kind):
    assert told(kind) == []


def test_looking_leaves_the_weights_as_they_were(config_of):
    config = config_of(MovesItself)
    parts = build_parts(config)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    lints_of(config, parts)
    after = parts.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
