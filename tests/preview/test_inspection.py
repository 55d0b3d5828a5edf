"""The inspection tells what autograd really did."""

import pytest
import torch
from torch.nn import functional as F

from finetune.config.run import RunConfig
from finetune.errors import FinetuneError
from finetune.preview.inspection import inspect_batch
from finetune.train.build import build_parts

LAYERS = [
    {"name": "flat", "type": "Flatten"},
    {"name": "one", "type": "Linear", "out_features": 8},
    {"name": "relu", "type": "ReLU", "inplace": True},
    {"name": "two", "type": "Linear", "out_features": 8},
    {"name": "tanh", "type": "Tanh"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


@pytest.fixture
def make_parts():
    def make(freeze=None, layers=LAYERS, steps=1):
        config = {
            "model": {"layers": layers},
            "data": {"source": {"type": "sklearn", "name": "digits"}},
            "task": {"type": "classification"},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "train": {"steps": steps},
        }
        return build_parts(
            RunConfig.model_validate(config | ({"freeze": freeze} if freeze else {}))
        )

    return make


def states(inspection):
    return {leaf.name: leaf.state for leaf in inspection.leaves}


def test_frozen_leaves_have_no_gradient_and_trained_ones_that_of_the_loss(make_parts):
    parts = make_parts(["one"])
    inspection = inspect_batch(parts, samples=6, activations=False)
    batch = parts.data.train.fetch(torch.arange(6))
    parts.model.zero_grad()
    loss = F.cross_entropy(parts.model(**batch.inputs), batch.target)
    loss.backward()
    assert inspection.samples == 6
    assert inspection.loss == pytest.approx(loss.item())
    for leaf in inspection.leaves:
        gradient = parts.model.get_parameter(leaf.name).grad
        if leaf.name.startswith("one."):
            assert (leaf.state, leaf.norm, gradient) == ("frozen", None, None)
        else:
            assert leaf.state == "trained"
            assert leaf.norm == pytest.approx(gradient.norm().item())
        assert leaf.shape == tuple(parts.model.get_parameter(leaf.name).shape)


@pytest.mark.parametrize(
    ("freeze", "before", "after"),
    [
        (["one"], "relu", "two"),
        (["one", "two"], "tanh", "head"),
        (["two"], "flat", "one"),
    ],
    ids=str,
)
def test_the_graph_is_cut_before_the_first_trained_module(make_parts, freeze, before, after):
    inspection = inspect_batch(make_parts(freeze), samples=4, activations=False)
    assert [call.module for call in inspection.cut] == [before, after]
    outside = [call.module for call in inspection.calls if call.is_outside]
    assert outside == ["flat", "one", "relu", "two", "tanh"][: len(outside)]


def test_the_graph_is_cut_nowhere_when_the_first_module_trains(make_parts):
    parts = make_parts(
        layers=[{"name": "conv", "type": "Conv2d", "out_channels": 2, "kernel_size": 3}, *LAYERS]
    )
    before, after = inspect_batch(parts, samples=4, activations=False).cut
    assert before is None
    assert after.module == "conv"


def test_activations_have_the_gradient_that_came_back_to_them(make_parts):
    parts = make_parts(["one"])
    inspection = inspect_batch(parts, samples=4, activations=True)
    batch = parts.data.train.fetch(torch.arange(4))
    model = parts.model
    with torch.no_grad():
        hidden = model.get_submodule("one")(batch.inputs["image"].flatten(1)).relu()
    tanh = model.get_submodule("two")(hidden).tanh()
    tanh.retain_grad()
    F.cross_entropy(model.get_submodule("head")(tanh), batch.target).backward()
    norms = {call.module: call.gradient_norm for call in inspection.calls}
    assert norms["tanh"] == pytest.approx(tanh.grad.norm().item())
    assert norms["relu"] is None
    without = inspect_batch(parts, samples=4, activations=False)
    assert {call.gradient_norm for call in without.calls} == {None}


def test_nodes_are_named_as_autograd_names_them(make_parts):
    inspection = inspect_batch(make_parts(), samples=4, activations=False)
    nodes = {call.module: call.grad_fn for call in inspection.calls}
    assert nodes == {
        "flat": None,
        "one": "AddmmBackward0",  # not that of the ReLU that changes its output in place
        "relu": "ReluBackward0",
        "two": "AddmmBackward0",
        "tanh": "TanhBackward0",
        "head": "AddmmBackward0",
    }
    assert inspection.loss_grad_fn == "DivBackward0"
    assert inspection.output_grad_fn == "AddmmBackward0"


def test_a_parameter_that_the_loss_does_not_reach_is_told(make_parts):
    layers = [
        {"name": "flat", "type": "Flatten"},
        {"name": "unused", "type": "Linear", "out_features": 8},
        {"name": "head", "type": "Linear", "out_features": "classes", "inputs": ["flat"]},
    ]
    inspection = inspect_batch(make_parts(layers=layers), samples=4, activations=False)
    assert states(inspection) == {
        "unused.weight": "unreached",
        "unused.bias": "unreached",
        "head.weight": "trained",
        "head.bias": "trained",
    }


def test_leaves_and_calls_know_the_block_they_lie_in(make_parts):
    block = {
        "type": "sequential",
        "layers": [{"type": "Linear", "out_features": 8}, {"type": "ReLU"}],
    }
    layers = [
        {"name": "flat", "type": "Flatten"},
        {"name": "in", "type": "Linear", "out_features": 8},
        {"name": "body", "type": "sequential", "layers": [block, block]},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    inspection = inspect_batch(make_parts(layers=layers), samples=4, activations=False)
    blocks = {leaf.name.rpartition(".")[0]: leaf.block for leaf in inspection.leaves}
    assert len(set(blocks.values())) == 4
    for module, inside in blocks.items():
        assert f"{module}.".startswith(f"{inside}.")


def test_a_later_phase_is_inspected_as_it_will_be(make_parts):
    parts = make_parts(
        {
            "phases": [
                {"name": "head", "train": ["head"], "until": {"fraction": 0.5}},
                {"name": "top", "train": ["head", "two"]},
            ]
        },
        steps=4,
    )
    for phase, after in ((0, "head"), (1, "two")):
        inspection = inspect_batch(parts, samples=4, activations=False, phase=phase)
        assert inspection.cut[1].module == after
    with pytest.raises(FinetuneError, match="no phase 2, the last one is phase 1"):
        inspect_batch(parts, samples=4, activations=False, phase=2)


def test_a_batch_has_no_more_samples_than_the_data(make_parts):
    assert inspect_batch(make_parts(), samples=10**6, activations=False).samples == 1797


def test_no_optimizer_step_is_taken(make_parts):
    parts = make_parts(["one"])
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    inspect_batch(parts, samples=4, activations=True)
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, before[name])
