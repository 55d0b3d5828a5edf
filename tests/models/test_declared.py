"""Declared networks: wiring, inferred sizes, initial weights, and what a misfit says."""

import random
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from finetune.config.model import ModelConfig
from finetune.errors import FinetuneError, ModelError, TrustError
from finetune.models.declared import Network, TensorSpec

DIGITS = (
    {"name": "conv1", "type": "Conv2d", "out_channels": 4, "kernel_size": [3, 3], "padding": 1},
    {"name": "norm", "type": "BatchNorm2d"},
    {"type": "ReLU"},
    {"name": "conv2", "type": "Conv2d", "out_channels": 6, "kernel_size": 3},
    {"type": "Flatten"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
)
VECTOR = {"x": TensorSpec((6,), "float32")}
SEQUENCE = {"x": TensorSpec((5, 6), "float32")}
TOKENS = {"tokens": TensorSpec((7,), "int64")}


def linear(name, width, **more):
    return {"name": name, "type": "Linear", "out_features": width, **more}


def test_input_sizes_are_read_off_what_comes_in(build):
    network = build(*DIGITS)
    assert network.conv1.in_channels == 1
    assert network.norm.num_features == 4
    assert network.conv2.in_channels == 4
    assert network.head.in_features == 6 * 6 * 6
    assert network(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert network(image=torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_parameter_names_begin_with_layer_names(build):
    names = [name for name, _ in build(*DIGITS).named_parameters()]
    assert names[:4] == ["conv1.weight", "conv1.bias", "norm.weight", "norm.bias"]
    assert names[-1] == "head.bias"


def test_a_built_network_is_in_training_mode_and_its_statistics_have_not_moved(build):
    network = build(*DIGITS)
    assert all(module.training for module in network.modules())
    assert network.norm.num_batches_tracked == 0
    assert torch.equal(network.norm.running_mean, torch.zeros(4))


def test_initial_weights_are_those_that_torch_draws_from_the_seed(build):
    network = build(*DIGITS, seed=3)
    torch.manual_seed(3)
    by_hand = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Linear(216, 10)]
    for ours, theirs in zip([network.conv1, network.conv2, network.head], by_hand, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_the_same_seed_gives_bit_equal_weights_and_another_seed_does_not(build, same_parameters):
    assert same_parameters(build(*DIGITS, seed=1), build(*DIGITS, seed=1))
    assert not same_parameters(build(*DIGITS, seed=1), build(*DIGITS, seed=2))


def test_building_leaves_the_random_state_of_the_caller_alone(build):
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    expected = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(*DIGITS, {"name": "drop", "type": "Dropout"}, seed=5)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert np.random.get_state()[1].tolist() == expected[2]


def test_add_and_concat_join_named_layers(build):
    network = build(
        linear("stem", 4),
        linear("left", 4, inputs=["stem"]),
        linear("right", 4, inputs=["stem"]),
        {"name": "sum", "type": "add", "inputs": ["left", "right", "stem"]},
        {"name": "both", "type": "concat", "inputs": ["sum", "x"]},
        linear("head", 2),
        inputs=VECTOR,
    )
    x = torch.randn(3, 6)
    stem = network.stem(x)
    total = network.left(stem) + network.right(stem) + stem
    assert torch.equal(network(x), network.head(torch.cat([total, x], dim=1)))


def test_a_layer_named_like_a_column_stands_for_itself_once_it_is_built(build):
    network = build(
        linear("x", 6),
        {"name": "sum", "type": "add", "inputs": ["x", "x"]},
        inputs=VECTOR,
    )
    x = torch.randn(3, 6)
    assert torch.equal(network(x), network.x(x) + network.x(x))


def test_several_columns_reach_the_layers_that_name_them(build):
    network = build(
        linear("left", 3, inputs=["a"]),
        linear("right", 3, inputs=["b"]),
        {"name": "sum", "type": "add", "inputs": ["left", "right"]},
        inputs={"a": TensorSpec((2,), "float32"), "b": TensorSpec((5,), "float32")},
    )
    a, b = torch.randn(4, 2), torch.randn(4, 5)
    expected = network.left(a) + network.right(b)
    assert torch.equal(network(a, b), expected)
    assert torch.equal(network(b=b, a=a), expected)
    assert torch.equal(network(a, b=b), expected)


def test_layers_in_a_sequential_carry_its_name(build):
    inner = [
        linear("first", 4),
        {"type": "ReLU"},
        {"type": "sequential", "layers": [linear("deep", 3)]},
    ]
    network = build({"name": "block", "type": "sequential", "layers": inner}, inputs=VECTOR)
    assert [name for name, _ in network.named_parameters()] == [
        "block.first.weight",
        "block.first.bias",
        "block.2.deep.weight",
        "block.2.deep.bias",
    ]
    assert network(torch.zeros(2, 6)).shape == (2, 3)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "in a sequential"])
def test_of_an_lstm_the_states_of_all_steps_go_on(build, nested):
    layers = [
        {"name": "embed", "type": "Embedding", "num_embeddings": 9, "embedding_dim": 5},
        {"name": "lstm", "type": "LSTM", "hidden_size": 8, "batch_first": True},
        linear("head", 2),
    ]
    if nested:
        layers = [{"name": "all", "type": "sequential", "layers": layers}]
    assert build(*layers, inputs=TOKENS)(torch.ones(3, 7, dtype=torch.int64)).shape == (3, 7, 2)


def test_attention_takes_its_inputs_by_position(build):
    network = build(
        {"name": "up", "type": "LayerNorm"},
        {
            "name": "attention",
            "type": "MultiheadAttention",
            "num_heads": 2,
            "batch_first": True,
            "inputs": ["up", "up", "up"],
        },
        inputs=SEQUENCE,
    )
    assert network.attention.embed_dim == 6
    assert network(torch.randn(2, 5, 6)).shape == (2, 5, 6)


def test_a_value_is_let_go_after_its_last_use(build):
    network = build(linear("a", 6), linear("b", 6), linear("c", 6), inputs=VECTOR)
    done = [[source.name for source in sources] for sources in network._done]
    assert done == [["x"], ["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("layers", "inputs", "said"),
    [
        (
            [{"name": "c", "type": "Conv2d", "out_channels": 2, "kernel_size": 3}],
            VECTOR,
            "layer 'c' (Conv2d): takes (N, C, H, W), got (2, 6)",
        ),
        (
            [{"name": "c", "type": "Conv2d", "out_channels": 2, "kernel_size": 3}],
            {"x": TensorSpec((8, 8), "float32")},
            "layer 'c' (Conv2d): takes (N, C, H, W), got (2, 8, 8)",
        ),
        (
            [linear("head", 2, in_features=64)],
            {"x": TensorSpec((10, 7), "float32")},
            "layer 'head' (Linear): takes (..., 64), got (2, 10, 7)",
        ),
        (
            [{"name": "norm", "type": "BatchNorm2d", "num_features": 3}],
            None,
            "layer 'norm' (BatchNorm2d): takes (N, 3, ...), got (2, 1, 8, 8)",
        ),
        (
            [{"name": "c", "type": "Conv2d", "out_channels": 2, "kernel_size": 9}],
            None,
            "layer 'c' (Conv2d): cannot take (2, 1, 8, 8): ",
        ),
        (
            [linear("head", 2)],
            {"x": TensorSpec((6,), "int64")},
            "layer 'head' (Linear): cannot take (2, 6) of int64: ",
        ),
        (
            [linear("head", 2)],
            {"x": TensorSpec((), "float32")},
            "layer 'head' (Linear): takes (N, ..., C), got (2,)",
        ),
        (
            [
                linear("a", 2),
                linear("b", 3, inputs=["x"]),
                {"name": "s", "type": "add", "inputs": ["a", "b"]},
            ],
            VECTOR,
            "layer 's' (add): takes inputs of one shape, got (2, 2) and (2, 3)",
        ),
        (
            [linear("a", 6), {"name": "s", "type": "concat", "inputs": ["a", "x"], "dim": 2}],
            VECTOR,
            "layer 's' (concat): takes inputs that have an axis 2 beside the samples, got (2, 6)",
        ),
        (
            [{"name": "c", "type": "Conv2d", "out_channels": 3, "kernel_size": 3, "groups": 2}],
            None,
            "layer 'c' (Conv2d): in_channels must be divisible by groups",
        ),
        (
            [
                {
                    "name": "b",
                    "type": "sequential",
                    "layers": [linear("a", 3), {"type": "MaxPool2d", "kernel_size": 2}],
                }
            ],
            VECTOR,
            "layer 'b.1' (MaxPool2d): takes (N, C, H, W), got (2, 3)",
        ),
        (
            [{"name": "r", "type": "LSTM", "hidden_size": 3}],
            SEQUENCE,
            "layer 'r' (LSTM): would take the samples for the steps of one sequence",
        ),
        (
            [linear("a", 3), linear("b", 3, inputs=["aa"])],
            VECTOR,
            "no earlier layer and no input column 'aa'; known: 'a', 'x'",
        ),
        ([linear("forward", 3)], VECTOR, "layer name 'forward' is taken"),
        (
            [linear("a", 3)],
            {**VECTOR, "y": TensorSpec((6,), "float32")},
            "layer 'a' (Linear): takes one input, and the data has 'x', 'y'",
        ),
        (
            [linear("a", 3, inputs=["x"])],
            {**VECTOR, "y": TensorSpec((6,), "float32")},
            "input column 'y' goes into no layer",
        ),
    ],
)
def test_a_misfit_names_the_layer_what_came_in_and_what_it_wants(build, layers, inputs, said):
    with pytest.raises(ModelError) as caught:
        build(*layers, inputs=inputs)
    assert str(caught.value).startswith(said)


def test_a_misfit_stands_at_its_layer_in_the_config(build):
    inner = [linear("a", 3), linear("b", 2, in_features=9)]
    with pytest.raises(ModelError) as caught:
        build({"type": "Flatten"}, {"type": "sequential", "layers": inner})
    assert caught.value.key == ("model", "layers", 1, "layers", 1, "in_features")


def test_classes_without_classes_in_the_data_is_refused(build):
    with pytest.raises(ModelError, match="the data has none") as caught:
        build(linear("head", "classes"), inputs=VECTOR, classes=None)
    assert caught.value.key == ("model", "layers", 0, "out_features")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{"type": "add", "inputs": ["a"]}], "needs the names of two or more layers"),
        ([{"type": "concat"}], "needs the names of two or more layers"),
        ([{"type": "sequential", "layers": [linear("a", 1), linear("a", 1)]}], "a second layer"),
        ([{"type": "sequential", "layers": [linear("a", 1, inputs=["x"])]}], "no inputs inside"),
        (
            [{"type": "sequential", "layers": [{"type": "add", "inputs": ["x", "y"]}]}],
            "no add inside sequential",
        ),
        (
            [{"type": "timm", "architecture": "vit", "args": {"num_classes": 3}}],
            "'num_classes' is said by the key 'output'",
        ),
    ],
)
def test_the_config_refuses_what_no_network_can_mean(layers, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate({"layers": layers})


def test_a_network_refuses_a_batch_with_other_columns(build):
    network = build(linear("a", 3), inputs=VECTOR)
    for arguments, keywords in [
        ((), {}),
        ((torch.zeros(1, 6),) * 2, {}),
        ((), {"y": torch.zeros(1)}),
    ]:
        with pytest.raises(TypeError, match="takes the columns"):
            network(*arguments, **keywords)


def imported(name, **args):
    return {"name": "net", "type": "import", "path": f"users_nets:{name}", "args": args}


def test_an_imported_network_may_have_control_flow_of_its_own(build, user_package, capfd):
    network = build(
        imported("Looped", width=6, classes="classes"), inputs=VECTOR, trust=[user_package]
    )
    shallow, deep = torch.zeros(2, 6), torch.full((2, 6), 3.0)
    net = network.net
    expected = deep
    for _ in range(4):
        expected = torch.relu(net.step(expected))
    assert torch.equal(network(shallow), net.head(torch.relu(net.step(shallow))))
    assert torch.equal(network(deep), net.head(expected))
    assert net.head.out_features == 10
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "building\n")


def test_an_imported_network_takes_columns_by_name_and_gives_what_it_gives(build, user_package):
    columns = {name: TensorSpec((2,), "float32") for name in ("left", "right")}
    network = build(imported("Named"), inputs=columns, trust=[user_package])
    left, right = torch.randn(3, 2), torch.randn(3, 2)
    assert torch.equal(network(left, right)["difference"], left - right)


def test_trying_a_layer_out_does_not_move_the_weights_of_later_ones(build, user_package):
    noisy = build(imported("Noisy"), linear("head", 3), inputs=VECTOR, trust=[user_package])
    assert torch.equal(noisy.head.weight, build(linear("head", 3), inputs=VECTOR).head.weight)


def test_code_that_is_not_trusted_is_not_imported(build, user_package):
    with pytest.raises(TrustError):
        build(imported("Looped"), inputs=VECTOR)
    assert user_package not in sys.modules


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            imported("Looped", widht=6),
            "layer 'net' (import): got an unexpected keyword argument 'widht'",
        ),
        (imported("give_a_number"), "layer 'net' (import): 'users_nets:give_a_number' gives a int"),
        (imported("Looped", width=5), "layer 'net' (import): cannot take (2, 6): mat1 and mat2"),
        (imported("Named"), "layer 'net' (import): missing a required argument: 'left'"),
        (imported("Gone"), "'users_nets:Gone': no public name 'Gone'"),
    ],
)
def test_a_misfit_of_imported_code_names_the_layer(build, user_package, layer, said):
    with pytest.raises(FinetuneError) as caught:
        build(layer, inputs=VECTOR, trust=[user_package])
    assert str(caught.value).startswith(said)


def test_an_error_of_the_users_own_code_flies(build, user_package):
    with pytest.raises(ZeroDivisionError):
        build(imported("Broken"), inputs=VECTOR, trust=[user_package])


def test_a_network_is_a_module_like_any_other(build):
    network = build(*DIGITS)
    assert isinstance(network, Network)
    assert network.weights_reports == ()


def test_affine_brings_numbers_to_another_unit_and_has_no_parameters(build):
    unit = {"name": "unit", "type": "affine", "scale": [2.0, 10.0], "shift": 5.0}
    network = build(linear("head", 2), unit, inputs=VECTOR)
    x = torch.randn(3, 6)
    assert torch.equal(network(x), network.head(x) * torch.tensor([2.0, 10.0]) + 5.0)
    assert [name for name, _ in network.named_parameters()] == ["head.weight", "head.bias"]
    assert list(network.state_dict()) == ["head.weight", "head.bias"]


def test_affine_takes_as_many_numbers_as_its_input_has(build):
    unit = {"name": "unit", "type": "affine", "shift": [1.0, 2.0, 3.0]}
    with pytest.raises(ModelError, match="shift has 3 numbers, its input 2 in its last axis"):
        build(linear("head", 2), unit, inputs=VECTOR)
