"""Layers with several outputs: feature maps of timm, states of an LSTM, networks of one's own."""

import pytest
import timm
import torch

from finetune.config.model import ModelConfig
from finetune.errors import ModelError
from finetune.models.declared import TensorSpec
from finetune.models.inventory import num_blocks, take_inventory

PHOTO = {"image": TensorSpec((3, 64, 64), "float32")}
MAPS = {
    "name": "backbone",
    "type": "timm",
    "architecture": "test_resnet",
    "pretrained": False,
    "output": "maps",
}


def taking(name, source):
    return {"name": name, "type": "Conv2d", "out_channels": 4, "kernel_size": 1, "inputs": [source]}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_later_layer_takes_one_of_the_feature_maps(build, architecture):
    layer = {**MAPS, "architecture": architecture, "out_indices": [1, 3]}
    network = build(
        layer,
        taking("low", "backbone.0"),
        taking("high", "backbone.1"),
        {"name": "up", "type": "Upsample", "scale_factor": 4, "inputs": ["high"]},
        {"name": "sum", "type": "add", "inputs": ["low", "up"]},
        inputs=PHOTO,
    ).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        low, high = network.backbone(images)
        assert network.low.in_channels == low.shape[1]
        expected = network.low(low) + network.up(network.high(high))
        assert torch.equal(network(images), expected)
    assert num_blocks(take_inventory(network)) > 1


def test_the_maps_are_those_of_timm_with_the_weights_of_the_seed(build):
    network = build(MAPS, taking("end", "backbone.4"), inputs=PHOTO, seed=3)
    torch.manual_seed(3)
    theirs = timm.create_model("test_resnet", features_only=True).state_dict()
    ours = network.backbone.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_stages_count_from_the_output_too(build):
    network = build({**MAPS, "out_indices": [-1]}, taking("end", "backbone.0"), inputs=PHOTO)
    assert network.end.in_channels == network.backbone.feature_info.channels()[-1]


def test_a_map_that_is_not_there_is_one_clear_error(build):
    with pytest.raises(ModelError, match=r"'backbone' has the outputs 0 to 1, not '7'") as caught:
        build({**MAPS, "out_indices": [1, 2]}, taking("end", "backbone.7"), inputs=PHOTO)
    assert caught.value.key == ("model", "layers", 1, "inputs", 0)


def test_all_maps_at_once_are_told_how_to_be_taken(build):
    with pytest.raises(ModelError, match="takes tensors, got a list") as caught:
        build(MAPS, taking("end", "backbone"), inputs=PHOTO)
    assert "inputs: [NAME.0]" in caught.value.hint


def test_the_states_of_an_lstm_are_taken_by_their_places(build):
    lstm = {"name": "lstm", "type": "LSTM", "hidden_size": 4, "batch_first": True}
    network = build(
        lstm,
        {"name": "cell", "type": "Identity", "inputs": ["lstm.1.1"]},
        inputs={"series": TensorSpec((6, 3), "float32")},
    )
    series = torch.rand(2, 6, 3)
    assert torch.equal(network(series), network.lstm(series)[1][1])


def test_an_output_of_a_users_network_is_taken_by_its_key(build, user_package):
    layer = {"name": "net", "type": "import", "path": f"{user_package}:Named"}
    columns = dict.fromkeys(("left", "right"), TensorSpec((4,), "float32"))
    head = {"name": "head", "type": "Linear", "out_features": 2, "inputs": ["net.difference"]}
    network = build(layer, head, inputs=columns, trust=[user_package])
    left, right = torch.rand(2, 3, 4)
    assert torch.equal(network(left, right), network.head(left - right))
    with pytest.raises(ModelError, match="has the outputs 'difference', not 'sum'"):
        build(layer, head | {"inputs": ["net.sum"]}, inputs=columns, trust=[user_package])


def test_one_output_has_no_places(build):
    first = {"name": "first", "type": "Linear", "out_features": 3}
    second = {"name": "second", "type": "Linear", "out_features": 3, "inputs": ["first.0"]}
    with pytest.raises(ModelError, match="'first' has one output"):
        build(first, second, inputs={"x": TensorSpec((4,), "float32")})


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({**MAPS, "output": "features", "out_indices": [1]}, "with output: maps alone"),
        ({**MAPS, "args": {"features_only": True}}, "is said by the key 'output'"),
        ({**MAPS, "args": {"out_indices": [1]}}, "is said by the key 'out_indices'"),
        ({**MAPS, "out_indices": []}, "at least 1"),
        ({**MAPS, "out_indices": [900]}, "must be at most 63"),
    ],
    ids=["no maps", "twice", "stages twice", "none", "too large"],
)
def test_keys_that_do_not_fit_are_one_clear_error(layer, said):
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate({"layers": [layer]})


def test_a_stage_that_a_network_does_not_have_is_one_clear_error(build):
    with pytest.raises(ModelError, match="layer 'backbone'"):
        build({**MAPS, "out_indices": [40]}, taking("end", "backbone.0"), inputs=PHOTO)


def test_an_output_of_a_later_layer_is_one_clear_error():
    with pytest.raises(ValueError, match=r"takes a later layer, 'backbone.0'"):
        ModelConfig.model_validate({"layers": [taking("end", "backbone.0"), MAPS]})


def test_a_column_that_is_called_by_a_number_with_a_fraction_is_no_layer(build):
    layer = {"type": "Linear", "out_features": 3, "inputs": ["0.5"]}
    network = build(layer, inputs={"0.5": TensorSpec((4,), "float32")})
    assert network(torch.zeros(2, 4)).shape == (2, 3)
