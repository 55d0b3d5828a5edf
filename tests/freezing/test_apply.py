"""Freezing any module: gradients dropped, modes held, nothing else touched."""

import copy
import pickle

import pytest
import torch
from torch import nn

from finetune.freezing.apply import (
    apply_mask,
    freeze,
    frozen_modules,
    frozen_now,
    hold_modes,
    release_modes,
    thaw,
)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)),
        nn.Dropout(0.5),
        nn.Linear(8, 2),
    )


def state_bytes(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train_some(model, steps=5, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()


def test_frozen_tensors_and_buffers_stay_bit_identical_and_others_move():
    model = make_net()
    freeze(model, ["0"])
    before = state_bytes(model)
    train_some(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("0."), name


def test_a_wholly_frozen_module_stays_in_evaluation_mode_through_every_train_call():
    model = make_net()
    freeze(model, ["0"])
    model.train()
    modes = {name: module.training for name, module in model.named_modules() if name}
    assert modes == {"0": False, "0.0": False, "0.1": False, "0.2": False, "1": True, "2": True}


def test_a_dropout_between_blocks_is_not_frozen():
    model = make_net()
    assert set(frozen_modules(model, freeze(model, ["0"]) and frozen_now(model))) == {
        "0", "0.0", "0.1", "0.2",
    }  # fmt: skip


def test_thawing_gives_modules_back_to_train():
    model = make_net()
    model.train()
    freeze(model, ["0"])
    assert thaw(model, ["0"]) == []
    assert all(module.training for module in model.modules())


def test_freezing_in_evaluation_mode_leaves_the_rest_in_evaluation_mode():
    model = make_net().eval()
    freeze(model, ["0"])
    assert not any(module.training for module in model.modules())


def test_freezing_drops_the_gradient_so_that_warm_momentum_cannot_move_the_weight():
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train_some(model, optimizer=optimizer)
    freeze(model, ["0"])
    assert all(p.grad is None for p in model[0].parameters())
    before = state_bytes(model)
    train_some(model, optimizer=optimizer)
    assert torch.equal(model.state_dict()["0.0.weight"], before["0.0.weight"])


def test_a_partly_frozen_module_keeps_training_mode():
    model = make_net()
    freeze(model, ["0.0"])
    model.train()
    assert not model[0][0].training
    assert model[0].training
    assert model[0][1].training


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_a_copy_of_a_frozen_model_holds_its_own_modes(copier):
    model = make_net()
    freeze(model, ["0"])
    copied = copier(model)
    model.train()
    copied.train()
    assert not copied[0].training
    assert copied[0].train.module is copied[0]
    assert copied[2].training


def test_a_child_module_tied_to_a_trained_tensor_is_not_wholly_frozen():
    model = nn.ModuleDict({"emb": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["emb"].weight
    assert frozen_modules(model, frozenset()) == {}
    assert set(frozen_modules(model, {"emb.weight"})) == {"", "emb", "head"}


def test_apply_mask_freezes_exactly_what_it_names():
    model = make_net()
    apply_mask(model, {"2.bias"})
    assert frozen_now(model) == {"2.bias"}
    apply_mask(model, {"0.0.weight"})
    assert frozen_now(model) == {"0.0.weight"}


def test_release_modes_takes_every_hold_off():
    model = make_net()
    apply_mask(model, {"0.0.weight", "0.0.bias"})
    hold_modes(model, {"0.0.weight", "0.0.bias"})
    release_modes(model)
    model.train()
    assert all(module.training for module in model.modules())
