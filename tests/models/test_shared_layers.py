"""`type: shared`: one layer called again, with one set of parameters."""

import pytest
import torch
from transformers import BertConfig, GPT2Config

from finetune.config.model import ModelConfig
from finetune.errors import FinetuneError, ModelError
from finetune.models.declared import TensorSpec
from finetune.models.inventory import num_blocks, take_inventory

PAIR = {"left": TensorSpec((5,), "float32"), "right": TensorSpec((5,), "float32")}
FIRST = {"name": "first", "type": "Linear", "out_features": 4, "inputs": ["left"]}
SECOND = {"name": "second", "type": "shared", "layer": "first", "inputs": ["right"]}
BOTH = {"name": "both", "type": "concat", "inputs": ["first", "second"]}
HEAD = {"name": "head", "type": "Linear", "out_features": 3}
SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


def texts(*names):
    return {
        f"{text}.{column}": TensorSpec((6,), "int64")
        for text in names
        for column in ("input_ids", "attention_mask")
    }


def test_the_parameters_of_a_shared_layer_exist_once(build):
    network = build(FIRST, SECOND, BOTH, HEAD, inputs=PAIR)
    assert [name for name, _ in network.named_children()] == ["first", "both", "head"]
    assert [row.name for row in take_inventory(network)] == [
        "first.weight", "first.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    assert list(network.state_dict()) == ["first.weight", "first.bias", "head.weight", "head.bias"]


def test_both_calls_are_those_of_one_layer(build):
    network = build(FIRST, SECOND, BOTH, inputs=PAIR).eval()
    left, right = torch.rand(2, 3, 5)
    expected = torch.cat([network.first(left), network.first(right)], dim=1)
    assert torch.equal(network(left, right), expected)
    network(left, right).sum().backward()
    assert torch.equal(network.first.bias.grad, torch.full((4,), 6.0))


def test_a_shared_layer_takes_the_layer_before_it_if_it_names_none(build):
    layers = [
        {"name": "block", "type": "Linear", "out_features": 5},
        {"type": "Tanh"},
        {"name": "again", "type": "shared", "layer": "block"},
    ]
    network = build(*layers, inputs={"x": TensorSpec((5,), "float32")})
    x = torch.rand(2, 5)
    assert torch.equal(network(x), network.block(torch.tanh(network.block(x))))


@pytest.mark.parametrize("output", ["mean", "cls", "last", "logits"])
def test_a_shared_encoder_reads_two_texts_each_with_its_own_mask(build, tmp_path, output):
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    (config if output in ("last", "logits") else BertConfig(**SIZES)).save_pretrained(tmp_path)
    layer = {"type": "transformers", "path": str(tmp_path), "pretrained": False, "output": output}
    network = build(
        {**layer, "name": "one", "inputs": ["a"]},
        {"name": "two", "type": "shared", "layer": "one", "inputs": ["b"]},
        {"name": "both", "type": "concat", "inputs": ["one", "two"]},
        inputs=texts("a", "b"),
    ).eval()
    alone = build({**layer, "name": "one", "inputs": ["a"]}, inputs=texts("a")).eval()
    alone.load_state_dict(network.state_dict())
    ids = torch.randint(3, 20, (2, 2, 6))
    mask = torch.ones_like(ids)
    mask[0, 0, 3:], mask[1, 1, 1:] = 0, 0
    with torch.no_grad():
        found = network(ids[0], mask[0], ids[1], mask[1])
        wanted = [alone(ids[side], mask[side]) for side in range(2)]
    assert torch.equal(found, torch.cat(wanted, dim=1))
    assert num_blocks(take_inventory(network)) == 2


def test_a_column_that_an_encoder_does_not_know_is_left_out_of_a_text_it_names(build, tmp_path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    layer = {"type": "transformers", "path": str(tmp_path), "pretrained": False, "name": "one"}
    columns = texts("a") | {"a.special_tokens_mask": TensorSpec((6,), "int64")}
    assert build({**layer, "inputs": ["a"]}, inputs=columns)


def test_two_texts_for_one_call_are_one_clear_error(build, tmp_path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    layer = {"type": "transformers", "path": str(tmp_path), "pretrained": False, "name": "one"}
    with pytest.raises(ModelError, match=r"takes one text, and gets 'a.input_ids'") as caught:
        build({**layer, "inputs": ["a", "b"]}, inputs=texts("a", "b"))
    assert "shared" in caught.value.hint


def test_a_plain_layer_that_names_a_text_is_told_its_columns(build):
    embedding = {"type": "Embedding", "num_embeddings": 20, "embedding_dim": 4, "inputs": ["a"]}
    with pytest.raises(ModelError, match=r"the tokens of 'a' are 'a.input_ids', ") as caught:
        build(embedding, inputs=texts("a"))
    assert caught.value.hint == "inputs: [a.input_ids]"


def test_weights_are_loaded_once_for_both_calls(build, tmp_path):
    torch.save({"weight": torch.ones(4, 5), "bias": torch.zeros(4)}, tmp_path / "w.pt")
    weights = {"path": str(tmp_path / "w.pt")}
    network = build({**FIRST, "weights": weights}, SECOND, BOTH, inputs=PAIR)
    assert len(network.weights_reports) == 1
    assert torch.equal(network(torch.ones(1, 5), torch.ones(1, 5)), torch.full((1, 8), 5.0))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([SECOND], "no earlier layer 'first'; known: none"),
        ([FIRST, {**SECOND, "layer": "frist"}], "no earlier layer 'frist'"),
        ([FIRST, SECOND, {**SECOND, "name": "third", "layer": "second"}], "itself a shared layer"),
        ([FIRST, SECOND, BOTH, {"type": "shared", "layer": "both"}], "has no parameters to share"),
        ([{"type": "sequential", "layers": [FIRST | {"inputs": None}, SECOND]}],
         "no shared inside sequential"),
        ([FIRST, {**SECOND, "weights": {"path": "x.pt"}}], "weights"),
    ],
    ids=["nothing before", "misspelt", "shared twice", "a merge", "inside", "own weights"],
)  # fmt: skip
def test_wrong_use_is_one_clear_error(layers, said):
    with pytest.raises((FinetuneError, ValueError), match=said):
        ModelConfig.model_validate({"layers": layers})


def test_a_shared_layer_on_an_input_of_another_width_is_one_clear_error(build):
    wide = PAIR | {"right": TensorSpec((7,), "float32")}
    with pytest.raises(ModelError, match=r"layer 'second' \(shared\): cannot take"):
        build(FIRST, SECOND, BOTH, inputs=wide)
