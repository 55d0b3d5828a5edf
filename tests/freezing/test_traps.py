"""What freezing in PyTorch stumbles over: each is right here, or refused with its reason."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from finetune.errors import SelectorError
from finetune.freezing.apply import freeze, frozen_now, refuse_inexact, thaw
from finetune.freezing.proof import fingerprints, verify

ADAM = {"type": "Adam", "lr": 0.01, "weight_decay": 0.1}


@pytest.fixture
def run_around(small_run, monkeypatch, request):
    """Build a run over `body`, the layer at question, and a linear head."""
    monkeypatch.syspath_prepend(request.path.parent)

    def build(body, phases, run="run", **changes):
        layer = {"type": "import", "path": f"trap_nets:{body}"} if isinstance(body, str) else body
        head = {"name": "head", "type": "Linear", "out_features": 3}
        model = {"layers": [{"name": "stem", "type": "Linear", "out_features": 4},
                            {"name": "body"} | layer, head]}  # fmt: skip
        return small_run(
            run, model=model, freeze={"phases": phases}, trust=["trap_nets"], **changes
        )

    return build


def frozen(*names, **more):
    return {"name": "frozen " + " ".join(names), "freeze": list(names)} | more


WARM = {"name": "all", "freeze": [], "until": {"steps": 2}}
HOLDING = [WARM, frozen("body")]
"""Everything trains and moves; then the body is frozen, with warm momentum."""

BODIES = {
    "BatchNorm": {"type": "BatchNorm1d"},
    "GroupNorm": {"type": "GroupNorm", "num_groups": 2},
    "Dropout": {
        "type": "sequential",
        "layers": [{"type": "Linear", "out_features": 4}, {"type": "Dropout", "p": 0.5}],
    },
    "spectral norm": "spectral",
    "spectral norm as a hook": "old_spectral",
    "weight norm": "weight_norm",
    "weight norm as a hook": "old_weight_norm",
    "a parametrisation of one's own": "symmetric",
    "tied matrices": "Tied",
    "a weight of bytes": "Quantised",
}
# torch has successors to its first spectral and weight norm, and says so when those are used
DEPRECATED = pytest.mark.filterwarnings("ignore:.*nn.utils.(spectral|weight)_norm.*:FutureWarning")


@DEPRECATED
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_everything_a_frozen_body_holds_keeps_every_bit_and_is_proven(
    run_around, weights_by_step, moved_in, body
):
    """D1, D2, D4, D5, D15, D17, D23: parameters, statistics and power iterations alike."""
    trainer = run_around(body, HOLDING)
    held = {name for name in trainer.model.state_dict() if name.startswith("body.")}
    history = weights_by_step(trainer)
    assert moved_in(history[0], history[2]) & held, "it trained before"
    for before, after in pairwise(history[2:]):
        assert not moved_in(before, after) & held
    assert {"stem.weight", "head.weight"} <= moved_in(history[2], history[-1])
    proven = json.loads((trainer.folder.path / "freeze_proof.json").read_text())["phases"][-1]
    tied = {"body.shared.weight"}
    assert held - tied <= proven["digests"].keys()
    assert proven["intact"]


@DEPRECATED
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_frozen_body_gives_in_training_what_it_gives_in_evaluation(run_around, body):
    """D2, D4, D15: running statistics are used, nothing is dropped, nothing iterates."""
    trainer = run_around(body, [frozen("body")])
    inside = trainer.model.get_submodule("body")
    inputs, seen = torch.randn(6, 4), []
    trainer.model.register_forward_hook(
        lambda module, _, output: seen.append(inside(inputs)) if module.training else None
    )
    trainer.fit()
    expected = inside.eval()(inputs)
    assert len(seen) == 6
    assert all(torch.equal(output, expected) for output in seen)


def test_dropout_between_blocks_goes_on_and_in_a_frozen_block_only_if_asked(run_around):
    """D4."""
    for wish, moves in (("eval", False), ("train", True)):
        phases = [frozen("body", modules={"dropout": wish})]
        trainer = run_around(BODIES["Dropout"], phases, run=wish)
        inside, seen = trainer.model.get_submodule("body"), []
        inside.register_forward_hook(lambda m, i, o, seen=seen: seen.append(bool((o == 0).any())))
        trainer.fit()
        assert any(seen) == moves


@pytest.mark.parametrize("wish", ["eval", "train"])
def test_dropout_called_as_a_function_in_a_frozen_module_goes_by_the_same_wish(
    run_around, weights_by_step, moved_in, wish
):
    """D4: its only sign is the mode of the module that calls it. Buffers are held all the same."""
    trainer = run_around("Dropping", [frozen("body", modules={"dropout": wish})])
    body, drops = trainer.model.get_submodule("body"), []
    ones, tokens = torch.ones(2, 4), torch.ones(2, 4, 4)

    def look(model, inputs):
        parts = (
            lambda: nn.functional.dropout(body.inner(ones), 0.5, body.training),
            lambda: body.attention(tokens, tokens, tokens)[0],
            lambda: body.statistics(ones),
        )
        drops.append([not torch.equal(part(), part()) for part in parts])

    trainer.model.register_forward_pre_hook(look)
    history = weights_by_step(trainer)
    assert [any(dropped) for dropped in zip(*drops, strict=True)] == [wish == "train"] * 2 + [False]
    assert not {name for name in moved_in(history[0], history[-1]) if name.startswith("body.")}
    (proof,) = json.loads((trainer.folder.path / "freeze_proof.json").read_text())["phases"]
    assert proof["left_out"] == []


def test_norm_train_does_not_set_power_iterations_free(run_around, weights_by_step, moved_in):
    """D15: torch's class of spectral norm is named like a norm of activations."""
    trainer = run_around("spectral", [frozen("body", modules={"norm": "train"})])
    history = weights_by_step(trainer)
    assert not {name for name in moved_in(history[0], history[-1]) if name.startswith("body.")}


def test_a_norm_that_equals_one_already_trained_is_thawed_all_the_same(run_around):
    """D3: by value, the second would be taken for the first."""
    twins = {"type": "sequential", "layers": [{"type": "LayerNorm"}, {"type": "LayerNorm"}]}
    phases = [
        frozen("body", until={"steps": 1}),
        frozen("body.0", until={"steps": 1}),
        frozen("stem"),
    ]
    trainer = run_around(twins, phases)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    for name in ("body.0.weight", "body.1.weight"):
        assert not torch.equal(trainer.model.state_dict()[name], before[name])


def test_a_frozen_parameter_has_no_gradient_in_any_step(run_around):
    """D5, D7: a stale one would be stepped with, and counted by clipping."""
    trainer = run_around({"type": "Linear", "out_features": 4}, [WARM, frozen("body", "stem")])
    norms = []

    def look(module, inputs, output):
        if trainer.progress.phase == 1:
            assert all(module.get_parameter(f"{n}.weight").grad is None for n in ("body", "stem"))

    trainer.model.register_forward_hook(look)
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            sum(
                float(p.grad.square().sum())
                for p in trainer.model.get_submodule("head").parameters()
            )
        )
    )
    trainer.fit()
    lines = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    told = [line["train/grad_norm"] for line in lines if line.get("phase", "").startswith("frozen")
            and "train/grad_norm" in line]  # fmt: skip
    assert told == pytest.approx([norm**0.5 for norm in norms[2:]])


def test_a_frozen_middle_does_not_cut_what_is_below_it_off(run_around, weights_by_step, moved_in):
    """D14."""
    history = weights_by_step(run_around({"type": "Linear", "out_features": 4}, [frozen("body")]))
    for before, after in pairwise(history):
        assert {"stem.weight", "stem.bias"} <= moved_in(before, after)


def test_a_network_under_weight_norm_trains_its_two_real_leaves(
    run_around, weights_by_step, moved_in
):
    """D15: `weight` itself is computed, no leaf."""
    trainer = run_around("weight_norm", [frozen("body.parametrizations.weight.original0")])
    history = weights_by_step(trainer)
    assert {name for name in moved_in(history[0], history[-1]) if name.startswith("body.")} == {
        "body.bias", "body.parametrizations.weight.original1",
    }  # fmt: skip


def test_a_tied_tensor_is_frozen_under_any_of_its_names(run_around, weights_by_step, moved_in):
    """D17."""
    history = weights_by_step(run_around("Tied", [frozen("body.shared")]))
    moved = {name for name in moved_in(history[0], history[-1]) if name.startswith("body.")}
    assert moved == {"body.down.weight", "body.down.bias"}


@pytest.mark.parametrize(
    "selectors", [["body"], ["body.table"], [{"rows": "body.table.weight[:2]"}]], ids=str
)
def test_an_embedding_with_max_norm_is_refused_with_the_reason(run_around, selectors):
    """D16: it rescales its weight in every forward pass."""
    with pytest.raises(SelectorError, match="max_norm, and rescales the weight in every forward"):
        run_around("Lookup", [frozen("head", until={"steps": 1}),
                              {"name": "two", "freeze": selectors}])  # fmt: skip


def test_an_embedding_with_max_norm_may_train(run_around):
    """D16."""
    assert run_around("Lookup", [frozen("head")]).fit().step == 6


def test_an_embedding_with_max_norm_is_refused_under_a_tied_name():
    """D16, D17: the weight goes by the name of the module that comes first."""
    model = nn.ModuleDict({"out": nn.Linear(4, 5), "table": nn.Embedding(5, 4, max_norm=1.0)})
    model["out"].weight = model["table"].weight
    with pytest.raises(SelectorError, match=r"'table\.weight' cannot be frozen"):
        freeze(model, ["out"])
    refuse_inexact(model, {"out.bias"})


@pytest.mark.parametrize("verb", [freeze, thaw])
def test_a_lazy_module_is_refused_until_it_has_seen_a_batch(verb):
    """D22."""
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(SelectorError, match=r"'0\.weight' has no shape yet: its module is lazy"):
        verb(model, ["0"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(torch.randn(2, 3))
    verb(model, ["0"])


def test_a_lazy_module_of_a_config_has_its_shapes_before_it_is_frozen(
    run_around, weights_by_step, moved_in
):
    """D22: a network is run once as it is built."""
    history = weights_by_step(run_around("Lazy", [frozen("body")]))
    assert not {name for name in moved_in(history[0], history[-1]) if name.startswith("body.")}


def test_a_parameter_of_bytes_is_never_asked_for_a_gradient():
    """D23: torch raises half-way through a module, and leaves it half thawed."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    model.register_parameter("codes", codes)
    assert freeze(model, ["a"]) == ["codes", "a.weight", "a.bias"]
    assert thaw(model, [{"all": True}]) == ["codes"]
    assert frozen_now(model) == {"codes"}


def test_a_buffer_of_bytes_is_proven(run_around):
    """D23."""
    trainer = run_around("Quantised", [frozen("body")])
    trainer.fit()
    (proof,) = json.loads((trainer.folder.path / "freeze_proof.json").read_text())["phases"]
    assert {"body.zero", "body.codes", "body.scale"} <= proof["digests"].keys()


def test_freezing_everything_is_refused_before_a_step(run_around):
    """D24."""
    with pytest.raises(SelectorError, match="trains nothing"):
        run_around({"type": "ReLU"}, [frozen("stem", "head")])


def test_a_resumed_run_sets_its_mask_anew(run_around):
    """D20: a state dict does not record what is frozen."""
    phases, short = [frozen("stem")], {"steps": 3, "batch_size": 8}
    run_around({"type": "ReLU"}, phases, train=short).fit()
    resumed = run_around({"type": "ReLU"}, phases, train=short | {"steps": 5})
    assert frozen_now(resumed.model) == frozenset()
    resumed.fit()
    assert frozen_now(resumed.model) == {"stem.weight", "stem.bias"}


def test_moves_and_copies_of_a_frozen_model_keep_what_is_frozen():
    """D29."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    freeze(model, ["0", "1"])
    for moved in (copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model).half()):
        moved.train()
        assert frozen_now(moved) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        assert [module.training for module in moved] == [False, False, True]


def test_a_loop_of_ones_own_that_calls_train_keeps_what_is_frozen():
    """D1, D28: ten lines by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    freeze(model, ["0", "1"])
    before = fingerprints(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        model.train()
        loss = model(torch.randn(8, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    verify(model, before)
    assert len(before) == 7
