"""What selectors take, and what they refuse."""

import pytest
import torch
from torch import nn

from finetune.errors import SelectorError
from finetune.freezing.select import select
from finetune.models.inventory import take_inventory


def make_block(width):
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.ModuleList(make_block(4) for _ in range(12))
        self.head = nn.Linear(4, 2)


class TiedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.emb.weight


@pytest.fixture(scope="module")
def inventory():
    return take_inventory(Net())


def names_of_blocks(*depths):
    parts = ("0.weight", "0.bias", "1.weight", "1.bias")
    return {f"layer.{depth}.{part}" for depth in depths for part in parts}


ALL = {name for name, _ in Net().named_parameters()}
NORMS = {f"layer.{n}.1.{p}" for n in range(12) for p in ("weight", "bias")}
BIASES = {name for name in ALL if name.endswith("bias")}


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        (["head"], {"head.weight", "head.bias"}),
        (["head.bias"], {"head.bias"}),
        (["layer.1"], names_of_blocks(1)),
        (["layer.1*"], names_of_blocks(1, 10, 11)),
        (["layer.*.bias"], BIASES - {"head.bias"}),
        (["*"], ALL),
        ([{"regex": r"layer\.\d\.0\.weight"}], {f"layer.{n}.0.weight" for n in range(10)}),
        ([{"type": "LayerNorm"}], NORMS),
        ([{"type": "Embedding"}], {"embed.weight"}),
        ([{"type": "Sequential"}], names_of_blocks(*range(12))),
        ([{"rows": "embed.weight[:3]"}], {"embed.weight[0:3]"}),
        ([{"rows": "embed.weight[-1]"}], {"embed.weight[6:7]"}),
        ([{"rows": "embed.weight[::2]"}], {"embed.weight[0:7:2]"}),
        (["embed", {"not": {"rows": "embed.weight[2:4]"}}],
         {"embed.weight[0:2]", "embed.weight[4:7]"}),
        ([{"kind": "norm"}], NORMS),
        ([{"kind": "bias"}], BIASES),
        ([{"kind": "weight"}], ALL - BIASES),
        ([{"kind": "embedding"}], {"embed.weight"}),
        ([{"depth": "-2:"}], names_of_blocks(10, 11)),
        ([{"depth": "0:2"}], names_of_blocks(0, 1)),
        ([{"depth": 3}], names_of_blocks(3)),
        ([{"depth": -1}], names_of_blocks(11)),
        ([{"all": True}], ALL),
        ([{"all": True}, "!head"], ALL - {"head.weight", "head.bias"}),
        ([{"all": True}, {"not": {"kind": "bias"}}], ALL - BIASES),
        (["layer", "!layer.3", "layer.3.0.weight"],
         names_of_blocks(0, 1, 2, *range(4, 12)) | {"layer.3.0.weight"}),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),
)  # fmt: skip
def test_selectors_take_exactly(inventory, selectors, expected):
    assert select(selectors, inventory) == expected


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        (["haed"], "did you mean 'head'"),
        (["layer.12"], "takes no parameter"),
        ([{"type": "LayerNrm"}], "did you mean 'LayerNorm'"),
        ([{"depth": "12:"}], "12 blocks: depths 0 to 11"),
        ([{"depth": 12}], "takes no parameter"),
        ([{"regex": "head"}], "full name from end to end"),
        (["!head"], "begin with {all: true}"),
        (["head", "!layer"], "takes nothing out"),
        ([{"sort": "norm"}], "not a selector"),
        ([{"rows": "embed.weight[7:]"}], "takes no row"),
        ([{"rows": "embed.weigth[:2]"}], "did you mean 'embed.weight'"),
        ([{"rows": "embed.weight[::-1]"}], "positive stride"),
    ],
    ids=str,
)
def test_a_selector_that_takes_nothing_is_refused_with_a_remedy(inventory, selectors, message):
    with pytest.raises(SelectorError) as caught:
        select(selectors, inventory)
    assert message in str(caught.value)


def test_a_tied_parameter_is_found_under_each_of_its_names():
    inventory = take_inventory(TiedNet())
    assert select(["lm_head"], inventory) == select(["emb"], inventory) == {"emb.weight"}


@pytest.mark.parametrize("selectors", [["emb", "!lm_head"], ["lm_head", "body", "!emb"]], ids=str)
def test_opposite_wishes_on_one_tied_tensor_are_refused_with_both_names(selectors):
    with pytest.raises(SelectorError) as caught:
        select(selectors, take_inventory(TiedNet()))
    assert "'emb.weight'" in str(caught.value)
    assert "'lm_head.weight'" in str(caught.value)


def test_the_same_wish_under_both_names_is_no_conflict():
    inventory = take_inventory(TiedNet())
    assert select([{"all": True}, "!lm_head", "!emb"], inventory) == {"body.weight", "body.bias"}


def test_selecting_changes_nothing_in_the_model():
    model = Net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    select(["head"], take_inventory(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
