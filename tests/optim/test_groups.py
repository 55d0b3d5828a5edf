"""The optimizer knows its parameters by name."""

import pytest
import torch
from torch import nn

from finetune.config.optim import OptimizerConfig
from finetune.errors import ModelError
from finetune.optim.groups import (
    build_optimizer,
    load_state_by_name,
    make_groups,
    set_rates,
    state_by_name,
)


def make(config, model):
    node = OptimizerConfig.model_validate(config)
    groups = make_groups(node, [name for name, _ in model.named_parameters()])
    return build_optimizer(node, groups, model), groups


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def test_arguments_reach_the_optimizer_with_lists_as_tuples():
    optimizer, _ = make({"type": "AdamW", "lr": 0.1, "betas": [0.8, 0.9]}, make_net())
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["lr"] == 0.1


def test_a_value_the_optimizer_refuses_is_told_in_one_line():
    with pytest.raises(ModelError, match="AdamW refuses: Invalid weight_decay"):
        make({"type": "AdamW", "lr": 0.1, "weight_decay": -1.0}, make_net())


def test_rates_are_the_groups_own_times_the_factor():
    optimizer, groups = make({"type": "SGD", "lr": 0.1}, make_net())
    set_rates(optimizer, groups, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]


def test_state_goes_by_name_where_parameters_have_changed_places():
    """Both layers have one shape: by position, torch would swap their states silently."""
    model = make_net()
    optimizer, groups = make({"type": "Adam", "lr": 0.1}, model)
    step(model, optimizer)
    saved = state_by_name(optimizer)
    node = OptimizerConfig.model_validate({"type": "Adam", "lr": 0.1})
    turned = make_groups(node, list(reversed(groups[0].names)))
    other = build_optimizer(node, turned, model)
    load_state_by_name(other, saved)
    for name, parameter in model.named_parameters():
        assert torch.equal(other.state[parameter]["exp_avg"], saved[name]["exp_avg"]), name


def test_state_of_an_unknown_parameter_is_refused():
    model = make_net()
    optimizer, _ = make({"type": "Adam", "lr": 0.1}, model)
    with pytest.raises(KeyError):
        load_state_by_name(optimizer, {"gone.weight": {}})
