"""The inventory: names, kinds, types, ties and depths of parameters."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from finetune.models.inventory import num_blocks, take_inventory


class RelativeBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(4, 2)
        self.logit_bias = nn.Parameter(torch.zeros(2))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2))


class PositionEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 2))
        self.proj = nn.Linear(2, 2)


class GemmaRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def inventory_of(model):
    return {param.name: param for param in take_inventory(model)}


@pytest.mark.parametrize(
    ("model", "name", "kinds"),
    [
        (nn.Linear(2, 2), "weight", {"weight"}),
        (nn.Linear(2, 2), "bias", {"bias"}),
        (nn.LSTM(2, 2, bidirectional=True), "bias_ih_l0_reverse", {"bias"}),
        (nn.LSTM(2, 2), "weight_hh_l0", {"weight"}),
        (nn.GRUCell(2, 2), "bias_hh", {"bias"}),
        (nn.MultiheadAttention(2, 1, add_bias_kv=True), "in_proj_bias", {"bias"}),
        (nn.MultiheadAttention(2, 1, add_bias_kv=True), "bias_k", {"bias"}),
        (nn.BatchNorm2d(2), "weight", {"weight", "norm"}),
        (nn.GroupNorm(1, 2), "bias", {"bias", "norm"}),
        (nn.InstanceNorm1d(2, affine=True), "bias", {"bias", "norm"}),
        (GemmaRMSNorm(), "weight", {"weight", "norm"}),
        (timm.layers.LayerNormAct2d(2), "weight", {"weight", "norm"}),
        (timm.layers.EvoNorm2dS0(4, groups=2), "bias", {"bias", "norm"}),
        (timm.layers.ConvNormAct(2, 2), "conv.weight", {"weight"}),
        (timm.layers.ConvNormAct(2, 2), "bn.weight", {"weight", "norm"}),
        (nn.EmbeddingBag(3, 2), "weight", {"weight", "embedding"}),
        (RelativeBias(), "relative_attention_bias.weight", {"weight", "embedding"}),
        (RelativeBias(), "logit_bias", {"bias"}),
        (RelativeBias(), "relative_position_bias_table", {"weight"}),
        (PositionEmbeddings(), "table", {"weight", "embedding"}),
        (PositionEmbeddings(), "proj.weight", {"weight"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_kinds_follow_from_the_name_and_the_module_that_owns_the_parameter(model, name, kinds):
    assert inventory_of(model)[name].kinds == kinds


def test_a_row_tells_shape_type_and_size():
    linear = inventory_of(nn.Sequential(nn.Linear(3, 2).half()))["0.weight"]
    assert (linear.shape, linear.numel, linear.dtype, linear.size_bytes) == (
        (2, 3),
        6,
        "float16",
        12,
    )
    assert (linear.module, linear.types, linear.floating) == ("0", ("Linear",), True)
    assert inventory_of(nn.BatchNorm1d(2))["bias"].types[:2] == ("BatchNorm1d", "_BatchNorm")


def test_a_parameter_of_whole_numbers_is_not_floating():
    model = nn.Module()
    model.table = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert not inventory_of(model)["table"].floating


def test_a_tied_tensor_has_one_row_with_its_other_names():
    (row,) = take_inventory(Tied())
    assert (row.name, row.aliases) == ("embed.weight", ("head.weight",))


def test_a_parametrized_weight_belongs_to_its_layer():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    row = inventory_of(model)["0.parametrizations.weight.original0"]
    assert (row.module, row.kinds) == ("0", {"weight"})
    assert "Linear" in row.types


def block(width=2):
    return nn.TransformerEncoderLayer(width, 1, 4, batch_first=True)


class Encoder(nn.Module):
    def __init__(self, *lists):
        super().__init__()
        self.embed = nn.Embedding(4, 2)
        self.stages = nn.ModuleList(lists)
        self.head = nn.Linear(2, 2)


def pair():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.ModuleList([block(), block(), block()]), {"0.": 0, "2.": 2}),
        (
            Encoder(nn.Sequential(block(), block()), nn.ModuleList([block()])),
            {"embed": None, "stages.0.0.": 0, "stages.0.1.": 1, "stages.1.0.": 2, "head": None},
        ),
        (
            Encoder(pair(), pair(), pair()),
            {"embed": None, "stages.0": 0, "stages.2": 2, "head": None},
        ),
        (
            nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))),
            {"0.0": 0, "0.2": 1},
        ),
        (
            torchvision.models.resnet18(),
            {"conv1": None, "layer1.0.": 0, "layer1.1.": 1, "layer4.1.": 7, "fc": None},
        ),
        (
            timm.create_model("test_vit", num_classes=3),
            {"cls_token": None, "patch_embed": None, "blocks.0.": 0, "blocks.5.": 5, "head": None},
        ),
        (
            nn.Sequential(timm.create_model("resnet10t"), nn.Linear(2, 2)),
            {"0.conv1": None, "0.layer1.0": 0, "0.layer4.0": 3, "0.fc": None, "1.": None},
        ),
    ],
    ids=["list", "stages", "containers", "lone child", "resnet", "timm vit", "timm resnet inside"],
)
def test_depth_counts_the_blocks_from_the_input(model, expected):
    inventory = take_inventory(model)
    depths = {
        prefix: {param.depth for param in inventory if param.name.startswith(prefix)}
        for prefix in expected
    }
    assert depths == {prefix: {depth} for prefix, depth in expected.items()}
    assert num_blocks(inventory) == 1 + max(d for d in expected.values() if d is not None)


def test_each_layer_of_a_plain_declared_network_is_a_block(build):
    network = build(
        {"name": "conv", "type": "Conv2d", "out_channels": 2, "kernel_size": 3},
        {"type": "Flatten"},
        {"name": "hidden", "type": "Linear", "out_features": 4},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    )
    inventory = take_inventory(network)
    assert [(param.module, param.depth) for param in inventory[::2]] == [
        ("conv", 0),
        ("hidden", 1),
        ("head", 2),
    ]
    assert num_blocks(inventory) == 3


def test_a_model_without_parameters_has_no_blocks():
    assert num_blocks(take_inventory(nn.ReLU())) == 0
