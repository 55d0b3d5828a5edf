"""Which valid configs are told to be suspicious, and which are left alone."""

import pytest
from torch import nn

from finetune.config.freeze import FreezeConfig, LinearProbe
from finetune.config.optim import OptimizerConfig
from finetune.freezing.lints import find_lints
from finetune.freezing.methods import written_out
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.add_module(attention, nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    """Blocks 0 to 11; the last two call their attention by its whole name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.ModuleList(Block("attn" if n < 10 else "attention") for n in range(12))
        self.head = nn.Linear(4, 7, bias=False)


class TiedNet(Net):
    def __init__(self):
        super().__init__()
        self.head.weight = self.embed.weight


def lints_of(phases, model=Net, lr=1e-3):
    config = FreezeConfig.model_validate({"phases": phases})
    optimizer = OptimizerConfig(type="AdamW", lr=lr)
    return find_lints(config, make_plan(config, optimizer, take_inventory(model())))


def lints_of_list(selectors, model=Net):
    return lints_of([{"name": "only", "freeze": selectors}], model)


@pytest.mark.parametrize(
    ("selectors", "number", "message"),
    [
        (["layer.1*"], 0, "'layer.1*' takes layer.1, but layer.10, layer.11 as well"),
        (["embed", "layer.1*.norm*"], 1, "takes layer.1, but layer.10, layer.11 as well"),
        ([{"regex": r"layer\.1.*"}], 0, "takes layer.1, but layer.10, layer.11 as well"),
        ([{"all": True}, "!layer.1*"], 1, "takes layer.1, but layer.10, layer.11 as well"),
        (["layer.3", "layer"], 0, "'layer.3' has no effect: 'layer' after it decides"),
        (["layer.3", "layer.3.attn", "layer.3.norm"], 0,
         "'layer.3.attn' and 'layer.3.norm' after it decide"),
        (["layer", "!layer.3", "layer.3"], 1, "not 'layer.3' has no effect"),
        (["*attn*"], 0, "'*attn*' misses what is called 'attention' (as in layer.10.attention"),
    ],
    ids=str,
)  # fmt: skip
def test_a_suspicious_selector_is_told_at_its_own_place(selectors, number, message):
    (lint,) = lints_of_list(selectors)
    assert lint.key == ("freeze", "phases", 0, "freeze", number)
    assert message in lint.message
    assert lint.hint


@pytest.mark.parametrize(
    "selectors",
    [
        ["layer.1"],
        ["layer.1.*"],
        ["layer.1?.*"],
        ["layer.1[01]*"],
        ["layer.2*"],
        ["layer.11*"],
        ["layer.*.norm*"],
        [{"regex": r"layer\.\d+\..*"}],
        [{"regex": r"layer\.1\..*"}],
        [{"depth": ":6"}],
        [{"all": True}, "!head"],
        ["layer", "!layer.3", "layer.3.norm"],
        ["layer.*.attn*", "layer.*.attention*"],
        ["*norm*"],
        ["*attention*", "*attn*"],
        [{"rows": "embed.weight[:3]"}],
        [{"kind": "norm"}],
    ],
    ids=str,
)
def test_a_plain_selector_is_left_alone(selectors):
    assert lints_of_list(selectors) == ()


@pytest.mark.parametrize(
    ("selector", "own", "other"),
    [("head", "head.weight", "embed.weight"), ("embed", "embed.weight", "head.weight")],
)
def test_a_tied_tensor_taken_by_one_name_is_told_with_the_other(selector, own, other):
    (lint,) = lints_of_list([selector], TiedNet)
    assert lint.key == ("freeze", "phases", 0, "freeze", 0)
    assert f"takes {own}, which is tied: {other} is the same tensor" in lint.message


@pytest.mark.parametrize("selectors", [["head", "embed"], [{"all": True}, "!layer"]], ids=str)
def test_a_tied_tensor_taken_by_all_names_is_not_told(selectors):
    found = [lint for lint in lints_of_list(selectors, TiedNet) if "tied" in lint.message]
    assert found == []


def test_a_rate_that_later_ones_overrule_is_told():
    rates = {"layer.3": 1e-4, "layer": 1e-5}
    (lint,) = lints_of([{"name": "only", "freeze": ["embed"], "lr": rates}])
    assert lint.key == ("freeze", "phases", 0, "lr", "layer.3")
    assert "no parameter uses the rate of 'layer.3'" in lint.message


def test_a_rate_for_what_is_partly_frozen_is_left_alone():
    rates = {"layer": 1e-5, "layer.11": 1e-4}
    assert lints_of([{"name": "only", "freeze": [{"depth": ":6"}], "lr": rates}]) == ()


def test_a_pattern_of_a_rate_that_takes_longer_numbers_is_told():
    (lint,) = lints_of([{"name": "only", "freeze": ["embed"], "lr": {"layer.1*": 1e-4}}])
    assert lint.key == ("freeze", "phases", 0, "lr", "layer.1*")


def test_a_rate_of_the_optimizer_that_no_phase_uses_is_told():
    (lint,) = lints_of([{"name": "only", "freeze": ["embed"], "lr": {"*": 1e-4}}])
    assert lint.key == ("optimizer", "lr")
    first = {"name": "first", "freeze": ["embed"], "until": {"steps": 3}}
    assert lints_of([first, {"name": "only", "freeze": ["embed"], "lr": {"*": 1e-4}}]) == ()


def test_of_a_method_only_the_head_is_judged():
    optimizer, inventory = OptimizerConfig(type="AdamW", lr=1e-3), take_inventory(Net())
    method = LinearProbe.model_validate({"method": "linear_probe", "head": ["layer.1*", "head"]})
    plan = make_plan(written_out(method, optimizer, inventory), optimizer, inventory)
    (lint,) = find_lints(method, plan)
    assert lint.key == ("freeze", "head", 0)


def test_nothing_frozen_is_nothing_to_tell():
    plan = make_plan(None, OptimizerConfig(type="AdamW", lr=1e-3), take_inventory(Net()))
    assert find_lints(None, plan) == ()


class NormedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("thawed", "modes", "count"),
    [
        ([{"all": True}], {}, 1),
        (["front", "head"], {}, 0),
        ([{"all": True}], {"norm": "train"}, 0),
    ],
    ids=["thawed", "kept frozen", "never held"],
)
def test_batch_norms_that_a_later_phase_thaws_are_told(thawed, modes, count):
    phases = [
        {"name": "probe", "train": ["head"], "until": {"epochs": 1}, "modules": modes},
        {"name": "all", "train": thawed},
    ]
    found = lints_of(phases, NormedNet)
    assert len(found) == count
    if found:
        assert found[0].key == ("freeze", "phases", 1)
        assert "'all' thaws batch norms" in found[0].message
