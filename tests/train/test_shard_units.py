"""Blocks gather their parameters alone, unless the network reads these between their calls."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from finetune.models.inventory import take_inventory
from finetune.train.ranks.shard_units import blocks_of, read_from_outside

parametrized = pytest.mark.parametrize


@pytest.fixture
def blocks(monkeypatch):
    """The blocks of a network that are read from outside; the network is left as it was."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    make = import_module("outside_nets").Outside

    def found(how):
        model = make(how)
        inputs, blocks = torch.randn(5, 4), blocks_of(model, take_inventory(model))
        assert list(blocks) == ["blocks.0", "blocks.1"]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        drawn = torch.get_rng_state()
        outside = read_from_outside(model, blocks, lambda: model(inputs))
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), drawn)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        return outside

    return found


@parametrized("how", ["method", "weight", "number", "in evaluation"])
def test_a_block_that_is_read_without_a_call_is_found(blocks, how):
    assert blocks(how) == {"blocks.0"}


@parametrized("how", ["call", "shape"])
def test_a_block_that_is_called_or_asked_for_its_shape_is_not(blocks, how):
    assert blocks(how) == set()
