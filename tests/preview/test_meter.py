"""What the plan says of a stored prefix is what a run with one does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory
from finetune.preview.costs import predict_costs
from finetune.train.build import build_parts

BELOW = {"phases": [{"name": "head only", "freeze": ["body", "norm"]}]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


class Stack(nn.Module):
    """Twelve equal blocks between an embedding and a head that cost next to nothing."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 256)
        self.blocks = nn.ModuleList(nn.Linear(256, 256) for _ in range(12))
        self.head = nn.Linear(256, 1)

    def forward(self, **inputs):
        (values,) = inputs.values()
        x = self.embed(values.float().reshape(len(values), -1)[:, :1])
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x).expand(-1, 10)


@pytest.mark.parametrize("frozen", [3, 6, 9, 11])
def test_with_its_prefix_stored_a_step_costs_the_rest_alone(make_config, frozen):
    """`3 (1 - r)` forward passes of 3, with a share `r` of the forward pass in the prefix."""
    below = {"phases": [{"name": "top", "freeze": ["embed", {"depth": f":{frozen}"}]}]}
    config = make_config(freeze=below, cache={"use": "auto"})
    model = Stack()
    parts = build_parts(config.model_copy(update={"freeze": None}))
    plan = make_plan(config.freeze, config.optimizer, take_inventory(model))
    costs = predict_costs(replace(parts, model=model, plan=plan), config)
    storing, full = costs.phases[0].storing, costs.full.flops_per_step
    assert storing.up_to == f"blocks.{frozen - 1}"
    assert storing.share_of_forward == pytest.approx(frozen / 12, rel=0.01)
    # the lowest block that trains hands no gradient on
    assert storing.flops_per_step / full == pytest.approx((3 * (12 - frozen) - 1) / 36, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", ["auto", 12], ids=["in one pass", "in micro-batches"])
def test_flops_and_store_of_a_run_are_those_that_the_plan_tells(
    make_config, make_trainer, always, tmp_path, micro_batch
):
    changes = {"freeze": BELOW, "cache": {"use": "auto"}}
    changes["train"] = {"micro_batch": micro_batch, "steps": 1000}
    config = make_config(**changes)
    costs = predict_costs(build_parts(config), config).phases[0]
    trainer = make_trainer(**changes)
    trainer._enter_phase()
    taken = []
    for window in trainer._windows():
        with FlopCounterMode(display=False) as counter:
            trainer.train_step(window)
        taken.append(counter.get_total_flops())
        if trainer.progress.step > trainer.timeline.steps_per_epoch:
            break
    for split in (trainer.splits.validation, trainer.splits.test):
        trainer.evaluate(split)
    trainer.cache.close()
    assert taken[-1] == costs.storing.flops_per_step < costs.flops_per_step
    kept = [*tmp_path.glob("cache/*/rows-*"), *tmp_path.glob("cache/*/seals")]
    assert sum(path.stat().st_size for path in kept) == costs.storing.store_bytes


def test_a_thaw_finds_stored_what_it_needs_as_the_plan_tells(make_config, make_trainer, always):
    phases = [
        {"name": "head", "freeze": ["body", "norm"], "until": {"epochs": 2}},
        {"name": "more", "freeze": ["body"]},
    ]
    changes = {"freeze": {"phases": phases}, "cache": {"use": "auto"}}
    changes["train"] = {"steps": None, "epochs": 4}
    config = make_config(**changes)
    told = predict_costs(build_parts(config), config).phases[1]
    assert told.storing.is_filled_before
    trainer = make_trainer(**changes)
    trainer._enter_phase()
    trainer._take_steps()
    trainer._leave_phase()
    trainer._enter_phase()
    windows = trainer._windows()
    trainer.train_step(next(windows))  # tries out its shape
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(next(windows))
    trainer.cache.close()
    assert counter.get_total_flops() == told.storing.flops_per_step < told.flops_per_step


def test_a_phase_sees_a_sample_as_often_as_it_has_epochs(make_config):
    phases = [
        {"name": "one", "freeze": ["body"], "until": {"epochs": 2}},
        {"name": "two", "freeze": ["body"], "until": {"epochs": 5}},
        {"name": "all", "freeze": []},
    ]
    config = make_config(
        freeze={"phases": phases}, train={"steps": None, "epochs": 8}, cache={"use": "auto"}
    )
    costs = predict_costs(build_parts(config), config)
    assert [cost.storing and cost.storing.visits for cost in costs.phases] == [2, 5, None]
    assert costs.phases[2].not_stored == "nothing is frozen"
    assert [cost.storing and cost.storing.is_filled_before for cost in costs.phases] == [
        False, True, None
    ]  # fmt: skip
    one, two, full = (*costs.phases[:2], costs.full)
    expected = (
        one.flops_per_step + one.storing.flops_per_step
        + 5 * two.storing.flops_per_step
        + full.flops_per_step
    )  # fmt: skip
    assert costs.share_with_stores == pytest.approx(expected / (8 * full.flops_per_step))
    assert costs.share_with_stores < costs.share_of_flops


def test_where_no_store_is_wanted_the_plan_says_so(make_config):
    config = make_config(freeze=BELOW, cache={"use": "off"})
    costs = predict_costs(build_parts(config), config)
    assert (costs.phases[0].storing, costs.phases[0].not_stored) == (None, "cache: off")
    assert costs.share_with_stores == costs.share_of_flops


def test_looking_for_a_prefix_leaves_the_model_as_it_was(make_config):
    config = make_config(freeze=BELOW, cache={"use": "auto"})
    parts = build_parts(config)
    before = copy.deepcopy(parts.model.state_dict())
    modes = [module.training for module in parts.model.modules()]
    random = torch.random.get_rng_state()
    predict_costs(parts, config)
    assert all(torch.equal(parts.model.state_dict()[name], before[name]) for name in before)
    assert [module.training for module in parts.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in parts.model.modules())
