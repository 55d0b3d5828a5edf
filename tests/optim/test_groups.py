"""The optimizer knows its parameters by name, and keeps one layout through all phases."""

import copy

import pytest
import torch
from torch import nn

from finetune.config.optim import OptimizerConfig
from finetune.errors import ModelError
from finetune.optim.groups import (
    build_optimizer,
    drop_state,
    load_state_by_name,
    make_groups,
    reset_state,
    set_rates,
    state_by_name,
)
from finetune.optim.rates import PeakRate

SLOW, FAST = PeakRate(0.1), PeakRate(0.5)


def make(config, model, groups=None):
    node = OptimizerConfig.model_validate(config)
    names = [name for name, _ in model.named_parameters()]
    groups = groups or make_groups(names, {})
    return build_optimizer(node, groups, dict(model.named_parameters())), groups


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def test_parameters_of_one_rate_and_decay_share_a_group():
    fates = {
        "a.w": (SLOW, SLOW),
        "a.v": (SLOW, SLOW),
        "a.b": (SLOW, None),
        "b.w": (FAST, FAST),
        "b.b": (None, FAST),
    }
    groups = make_groups([*fates], fates)
    assert [g.names for g in groups] == [("a.w", "a.v"), ("a.b",), ("b.w",), ("b.b",)]
    assert len({group.name for group in groups}) == 4


def test_a_single_group_is_called_all():
    assert [g.name for g in make_groups(["a", "b"], {"a": (SLOW,), "b": (SLOW,)})] == ["all"]


def test_what_is_not_decayed_has_no_decay_and_the_rest_has_the_optimizers():
    model = make_net()
    names = [name for name, _ in model.named_parameters()]
    groups = make_groups(names, {}, {"0.bias", "1.bias"})
    optimizer, _ = make({"type": "AdamW", "lr": 0.1, "weight_decay": 0.3}, model, groups)
    decay = {g["param_names"][0].split(".")[1]: g["weight_decay"] for g in optimizer.param_groups}
    assert decay == {"weight": 0.3, "bias": 0.0}


def test_arguments_reach_the_optimizer_with_lists_as_tuples():
    optimizer, _ = make({"type": "AdamW", "lr": 0.1, "betas": [0.8, 0.9]}, make_net())
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["lr"] == 0.1


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [("Adam", "betas", [0.9]), ("Adam", "betas", [0.9, 0.99, 0.9]), ("Rprop", "step_sizes", [])],
)
def test_a_list_of_another_length_than_torch_wants_names_its_key(kind, argument, value):
    config = OptimizerConfig.model_validate({"type": kind, "lr": 0.1, argument: value})
    with pytest.raises(ModelError, match="needs 2 numbers") as error:
        build_optimizer(config, [], {})
    assert error.value.key == ("optimizer", argument)


def test_a_value_the_optimizer_refuses_is_told_in_one_line():
    with pytest.raises(ModelError, match="AdamW refuses: Invalid weight_decay"):
        make({"type": "AdamW", "lr": 0.1, "weight_decay": -1.0}, make_net())


def test_rates_are_written_group_by_group():
    optimizer, _ = make({"type": "SGD", "lr": 0.1}, make_net())
    set_rates(optimizer, [0.05])
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]


def test_state_goes_by_name_where_parameters_have_changed_places():
    """Both layers have one shape: by position, torch would swap their states silently."""
    model = make_net()
    optimizer, groups = make({"type": "Adam", "lr": 0.1}, model)
    step(model, optimizer)
    saved = state_by_name(optimizer)
    names = list(reversed(groups[0].names))
    turned = make_groups(names, {})
    other, _ = make({"type": "Adam", "lr": 0.1}, model, turned)
    load_state_by_name(other, saved)
    for name, parameter in model.named_parameters():
        assert torch.equal(other.state[parameter]["exp_avg"], saved[name]["exp_avg"]), name


def test_state_of_an_unknown_parameter_is_refused():
    optimizer, _ = make({"type": "Adam", "lr": 0.1}, make_net())
    with pytest.raises(KeyError):
        load_state_by_name(optimizer, {"gone.weight": {}})


def test_dropped_state_is_gone_and_the_rest_stays():
    model = make_net()
    optimizer, _ = make({"type": "Adam", "lr": 0.1}, model)
    step(model, optimizer)
    drop_state(optimizer, {"0.weight"})
    assert set(state_by_name(optimizer)) == {"0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("kind", ["Adagrad", "Adam"])
def test_state_that_begins_anew_is_that_of_a_new_optimizer(kind):
    model = make_net()
    optimizer, _ = make({"type": kind, "lr": 0.1}, model)
    fresh = copy.deepcopy(state_by_name(optimizer))
    step(model, optimizer)
    reset_state(optimizer, {"0.weight", "0.bias"})
    state = state_by_name(optimizer)
    for name in ("0.weight", "0.bias"):
        assert (name in state) == (name in fresh) == (kind == "Adagrad")
        for entry, value in fresh.get(name, {}).items():
            assert torch.equal(state[name][entry], value)
    assert state["1.weight"]["step"] == 1
