"""LISA draws blocks as its paper says, and the run proves each draw."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

from finetune.config.freeze import Lisa
from finetune.config.optim import OptimizerConfig
from finetune.errors import SelectorError
from finetune.freezing.plan import make_plan
from finetune.freezing.policies.policy import Facts
from finetune.freezing.proof import fingerprints
from finetune.models.inventory import take_inventory
from finetune.pictures.freeze_map import FreezeMap, freeze_timeline


class Encoder(nn.Module):
    """Embeddings, four blocks, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(4)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)


OUTSIDE = {"embed.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}
PARAMETERS = {name for name, _ in Encoder().named_parameters()}


def plan_of(seed=0, model=None, **settings):
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": 0.1})
    inventory = take_inventory(model or Encoder())
    return make_plan(Lisa(method="lisa", **settings), optimizer, inventory, seed=seed)


def draws(plan, count, period=20):
    memory = {}
    found = [plan.policy.first(memory)]
    for number in range(count - 1):
        began = number * period
        assert plan.policy.observe(Facts(began + period - 1, began), memory) is None
        found.append(plan.policy.observe(Facts(began + period, began), memory))
    return found


def test_each_draw_takes_as_many_blocks_as_asked_for_without_replacement():
    for mask in draws(plan_of(blocks=3), 50):
        assert len(set(mask)) == 3
        assert set(mask) <= {0, 1, 2, 3}


def test_blocks_are_drawn_uniformly():
    counts = Counter(block for mask in draws(plan_of(blocks=1), 4000) for block in mask)
    # 1000 each; the standard deviation is 27
    assert all(850 < counts[block] < 1150 for block in range(4))


def test_draws_follow_from_the_seed_alone():
    torch.manual_seed(5)
    assert draws(plan_of(3), 20) == draws(plan_of(3), 20)
    assert draws(plan_of(3), 20) != draws(plan_of(4), 20)


def test_what_is_outside_the_blocks_trains_always():
    plan = plan_of(blocks=1)
    for number, mask in enumerate(draws(plan, 8)):
        phase = plan.made(number, mask)
        own = {name for name in PARAMETERS if name.startswith(f"blocks.{mask[0]}.")}
        assert PARAMETERS - phase.frozen == OUTSIDE | own
        assert phase.rates.keys() == OUTSIDE | own
    assert set(plan.ever_trained) == PARAMETERS


def test_what_is_kept_frozen_is_never_drawn_and_the_head_never_frozen():
    plan = plan_of(blocks=1, keep_frozen=["embed", "blocks.1"], head=["head", "blocks.3"])
    assert set(plan.policy.blocks) == {0, 2}
    assert not {name for name in plan.ever_trained if name.startswith(("embed", "blocks.1"))}
    assert all("blocks.3.0.weight" not in plan.made(0, mask).frozen for mask in draws(plan, 9))


def test_parameters_of_a_block_share_a_group_with_no_other_block():
    fates = plan_of().fates
    assert fates["blocks.0.0.weight"] == fates["blocks.0.1.bias"] != fates["blocks.1.0.weight"]
    assert fates["embed.weight"] == fates["head.bias"]


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (None, {"blocks": 5}, "lisa draws 5 blocks, and the network has 4 that can train"),
        (None, {"keep_frozen": ["blocks.[0-2].*"]}, "draws 2 blocks, and the network has 1"),
        (nn.Sequential(nn.Linear(2, 2)), {"blocks": 1}, "the network has 0"),
        (None, {"head": ["foot"]}, "foot"),
    ],
    ids=["too many", "too few left", "only a head", "no such head"],
)
def test_blocks_that_are_not_there_are_refused(model, settings, said):
    with pytest.raises(SelectorError, match=said):
        plan_of(model=model, **settings)


@pytest.mark.parametrize(
    ("masks", "memory"),
    [
        ([(0, 1)], {"draws": 1}),
        ([], {"draws": 1}),
        ("right", {"draws": 7}),
        ("right", {"draws": 3, "more": 1}),
        ("swapped", {"draws": 3}),
    ],
    ids=["another draw", "no draw", "another count", "more than it knows", "another order"],
)
def test_a_saved_run_with_other_draws_is_known(masks, memory):
    plan = plan_of(1)
    right = draws(plan, 3)
    assert plan.policy.misfit(right, {"draws": 3}) is None
    assert right[0] != (0, 1) != right[1] != right[0], "or another seed is needed"
    told = {"right": right, "swapped": [right[1], right[0], right[2]]}.get(str(masks), masks)
    assert plan.policy.misfit(told, memory) is not None


NET = {
    "layers": [
        {"name": "one", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "two", "type": "Linear", "out_features": 6},
        {"name": "three", "type": "Linear", "out_features": 6},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
RUN = {
    "model": NET,
    "freeze": {"method": "lisa", "period": 3, "blocks": 1},
    "optimizer": {"type": "AdamW", "lr": 0.05, "weight_decay": 0.1},
    "train": {"steps": 14, "batch_size": 8, "log_every": 1},
}
BLOCK = ("one", "norm", "two", "three")


def lines(trainer):
    return [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]


def test_only_what_was_drawn_moves_and_each_stretch_is_proven(small_run):
    trainer = small_run(**RUN)
    before = []
    trainer.model.register_forward_pre_hook(
        lambda module, _: (
            before.append(fingerprints(module, names_of(module))) if module.training else None
        )
    )
    progress = trainer.fit()
    after = [*before[1:], None]
    assert progress.transitions == [3, 6, 9, 12]
    assert len({tuple(mask) for mask in progress.masks}) > 1
    for step, (one, other) in enumerate(zip(before, after, strict=True)):
        if other is not None:
            moved = {name.split(".")[0] for name in one if one[name] != other[name]}
            (drawn,) = progress.masks[step // 3]
            assert moved == {"head", BLOCK[drawn]}
    proofs = json.loads((trainer.folder.path / "freeze_proof.json").read_text())
    assert proofs["intact"]
    assert [proof["phase"] for proof in proofs["phases"]] == [f"lisa {n}" for n in range(5)]
    assert [proof["first_step"] for proof in proofs["phases"]] == [0, 3, 6, 9, 12]
    rates = [{k for k in line if k.startswith("train/lr/")} for line in lines(trainer)]
    assert all(len(told) in (0, 2) for told in rates), "the rates of head and of the drawn block"


def test_a_picture_of_hundreds_of_phases_stays_small():
    began = list(range(0, 3000, 10))
    shown = FreezeMap(
        rows={"block": ["trained", "frozen"] * 150},
        phases=[f"lisa {number}" for number in range(300)],
        began=began,
        total_steps=3000,
        now=3000,
    )
    assert freeze_timeline(shown).height < 1100


def names_of(module):
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize(("wish", "counted"), [("keep", "all"), ("reset", "the last")])
def test_momentum_of_a_block_that_is_drawn_again_is_kept_or_lost_as_wished(
    small_run, wish, counted
):
    """AdamW counts the steps that its state has seen."""
    freeze = RUN["freeze"] | {"optimizer_state": wish}
    trainer = small_run(**RUN | {"freeze": freeze})
    masks = trainer.fit().masks
    lengths = [3, 3, 3, 3, 2]
    seen = Counter()
    for number, (block,) in enumerate(masks):
        is_again = number and masks[number - 1] == [block]
        seen[block] = seen[block] * (counted == "all" or is_again) + lengths[number]
    state = trainer.optimizer.state
    named = dict(trainer.model.named_parameters())
    steps = {n: int(state[named[f"{BLOCK[n]}.weight"]]["step"]) for n in seen}
    assert steps == seen
    assert int(state[named["head.weight"]]["step"]) == 14


def test_the_cache_is_off_and_says_so_once(small_run, capfd):
    small_run(**RUN, cache="auto").fit()
    assert capfd.readouterr().err.count("activation cache: off, lisa draws other blocks") == 1
