"""Rates by selector and by depth, with the numbers of the papers computed another way."""

import pytest
from torch import nn

from finetune.config.freeze import FreezeConfig
from finetune.config.optim import OptimizerConfig
from finetune.errors import SelectorError, SeveralFaultsError
from finetune.freezing.phase_rates import layer_factors, layer_ids
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory


def make_net(blocks=4):
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4),
            "blocks": nn.ModuleList(block() for _ in range(blocks)),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 2),
        }
    )


def adamw(**more):
    return OptimizerConfig.model_validate({"type": "AdamW", "lr": 1.0} | more)


def plan_for(optimizer, *phases, model=None):
    config = FreezeConfig.model_validate({"phases": phases}) if phases else None
    return make_plan(config, optimizer, take_inventory(model or make_net()))


def numbers(phase):
    return {name: rate.lr for name, rate in phase.rates.items()}


def beit(num_layers, decay):
    """BEiT as in timm: walk down from the head, one factor for each layer on the way."""
    scales, scale = {}, 1.0
    for place in range(num_layers + 1, -1, -1):
        scales[place] = scale
        scale *= decay
    return scales


@pytest.mark.parametrize(("blocks", "decay"), [(4, 0.8), (12, 0.75), (24, 0.9)])
def test_layer_decay_has_the_factors_of_beit(blocks, decay):
    inventory = take_inventory(make_net(blocks))
    scales = beit(blocks, decay)
    factors = layer_factors(adamw(layer_decay=decay), inventory)
    expected = {"embed.weight": scales[0], "norm.weight": 1.0, "head.bias": 1.0}
    expected |= {f"blocks.{n}.0.weight": scales[n + 1] for n in range(blocks)}
    assert {name: factors[name] for name in expected} == pytest.approx(expected)


def test_layer_decay_is_one_step_above_that_of_electra_below_the_head():
    """ELECTRA: lr * d ** (n + 2 - depth), embeddings 0, layer i at i + 1, the head at n + 2."""
    decay, blocks = 0.8, 4
    factors = layer_factors(adamw(layer_decay=decay), take_inventory(make_net(blocks)))
    electra = {"embed.weight": decay ** (blocks + 2)}
    electra |= {f"blocks.{i}.0.weight": decay ** (blocks + 2 - (i + 1)) for i in range(blocks)}
    for name, value in electra.items():
        assert factors[name] == pytest.approx(value / decay)
    assert factors["head.weight"] == decay ** (blocks + 2 - (blocks + 2))


def test_the_topmost_block_has_the_whole_rate_where_nothing_comes_behind_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    factors = layer_factors(adamw(layer_decay=0.5), take_inventory(model))
    assert {name: f for name, f in factors.items() if name.endswith("weight")} == {
        "0.weight": 0.25, "2.weight": 0.5, "4.weight": 1.0,
    }  # fmt: skip


def test_without_layer_decay_every_factor_is_1():
    assert set(layer_factors(adamw(), take_inventory(make_net())).values()) == {1.0}


def test_parameters_before_in_and_behind_the_blocks_are_numbered_upwards():
    inventory = take_inventory(make_net(2))
    ids = dict(zip((param.name for param in inventory), layer_ids(inventory), strict=True))
    assert ids["embed.weight"] == 0
    assert (ids["blocks.0.1.bias"], ids["blocks.1.0.bias"]) == (1, 2)
    assert (ids["norm.bias"], ids["head.weight"]) == (3, 3)


def test_tiny_factors_are_frozen_in_every_phase():
    phase = {"name": "one", "train": [{"all": True}], "until": {"steps": 1}}
    optimizer = adamw(layer_decay=0.5, freeze_below=0.1)
    plan = plan_for(optimizer, phase, {"name": "two", "freeze": ["head"]})
    tiny = {"embed.weight", *(f"blocks.0.{p}" for p in
            ("0.weight", "0.bias", "1.weight", "1.bias"))}  # fmt: skip
    assert 0.5**4 < 0.1 < 0.5**3
    assert all(tiny <= one.frozen for one in plan.phases)
    assert not tiny & set(plan.ever_trained)
    assert plan.phases[0].frozen == tiny


def test_later_entries_overrule_earlier_ones_and_the_rest_has_the_optimizers_rate():
    lr = {"blocks": 0.1, "blocks.3": 0.2, "*.bias": 0.3}
    plan = plan_for(adamw(), {"name": "one", "freeze": ["embed"], "lr": lr})
    rates = numbers(plan.phases[0])
    assert rates["head.weight"] == 1.0
    assert rates["blocks.0.0.weight"] == 0.1
    assert rates["blocks.3.0.weight"] == 0.2
    assert rates["blocks.3.0.bias"] == rates["head.bias"] == 0.3
    assert "embed.weight" not in rates


def test_a_rate_that_a_phase_gives_stands_as_given_whatever_the_depth():
    plan = plan_for(adamw(layer_decay=0.5), {"name": "one", "freeze": [], "lr": {"blocks": 0.1}})
    rates = numbers(plan.phases[0])
    assert rates["blocks.3.0.weight"] == rates["blocks.0.0.weight"] == 0.1
    assert rates["embed.weight"] == pytest.approx(1 / 32)


def test_a_rate_that_asks_for_layer_decay_goes_by_depth():
    lr = {"*": {"lr": 0.1, "layer_decay": True}}
    plan = plan_for(adamw(layer_decay=0.5), {"name": "one", "freeze": [], "lr": lr})
    rates = numbers(plan.phases[0])
    assert rates["head.bias"] == 0.1
    assert rates["blocks.3.0.weight"] == pytest.approx(0.05)
    assert rates["blocks.0.0.weight"] == pytest.approx(0.1 / 16)


def test_every_wrong_rate_of_a_phase_is_told_where_it_stands():
    lr = {"embed": 0.1, "hed": 0.2, "head": 0.3}
    with pytest.raises(SeveralFaultsError) as caught:
        plan_for(adamw(), {"name": "one", "freeze": ["embed"], "lr": lr})
    frozen, typo = caught.value.errors
    assert "a rate for 'embed', which phase 'one' holds frozen" in str(frozen)
    assert "did you mean 'head'" in str(typo)
    assert [error.key[:4] for error in caught.value.errors] == [("freeze", "phases", 0, "lr")] * 2
    assert (frozen.key[4], typo.key[4]) == ("embed", "hed")


def test_no_decay_takes_what_its_selectors_say_and_nothing_by_default():
    norms = {"norm.weight", "norm.bias"}
    norms |= {f"blocks.{n}.1.{p}" for n in range(4) for p in ("weight", "bias")}
    biases = {f"blocks.{n}.0.bias" for n in range(4)} | {"head.bias"}
    assert plan_for(adamw()).undecayed == frozenset()
    plan = plan_for(adamw(no_decay=[{"kind": "norm"}, {"kind": "bias"}]))
    assert plan.undecayed == norms | biases


def test_no_decay_that_takes_nothing_is_refused():
    with pytest.raises(SelectorError) as caught:
        plan_for(adamw(no_decay=["nrom"]))
    assert caught.value.key == ("optimizer", "no_decay", 0)


def test_no_decay_goes_by_rows_as_well(small_run):
    trainer = small_run(
        optimizer={"type": "SGD", "lr": 0.5, "weight_decay": 0.5,
                   "no_decay": [{"rows": "head.weight[:1]"}, "head.bias"]},
    )  # fmt: skip
    decay = {name: group["weight_decay"] for group in trainer.optimizer.param_groups
             for name in group["param_names"]}  # fmt: skip
    assert decay == {
        "body.weight": 0.5, "body.bias": 0.5, "head.bias": 0.0,
        "head.weight[0:1]": 0.0, "head.weight[1:3]": 0.5,
    }  # fmt: skip
