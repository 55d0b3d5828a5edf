"""A pretrained folder may bring code of its own. It is never run, whatever anybody answers."""

import contextlib
import io
import json
import sys

import pytest

from finetune.data.steps.loaded_tokenizer import load_tokenizer
from finetune.errors import DataError

CODE = """\
import os
os.system({command!r})
from transformers import BertConfig, BertModel, BertTokenizerFast
class Config(BertConfig):
    model_type = "stranger"
class Model(BertModel):
    config_class = Config
class Tokenizer(BertTokenizerFast): ...
"""
MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoModelForSequenceClassification": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
    "AutoImageProcessor": "code.Tokenizer",
}


@pytest.fixture(params=["stranger", "bert"])
def folder(attack, request):
    """A folder whose network and tokenizer ask for its own code, under a known name or not."""
    settings = {"model_type": request.param, "hidden_size": 8, "num_attention_heads": 1}
    settings |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 20}
    attack.write("net/config.json", json.dumps(settings | {"auto_map": MAP}))
    attack.write(
        "net/tokenizer_config.json", json.dumps({"tokenizer_class": "Tokenizer", "auto_map": MAP})
    )
    attack.write("net/preprocessor_config.json", json.dumps({"auto_map": MAP}))
    attack.write("net/code.py", CODE.format(command=attack.command))
    for name in ("net", "words"):
        attack.write(f"{name}/vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    attack.write("words/tokenizer_config.json", json.dumps({"tokenizer_class": "BertTokenizer"}))
    return "net"


@pytest.mark.parametrize("answer", ["", "y\n" * 50], ids=["silence", "yes"])
@pytest.mark.parametrize("output", ["mean", "logits"])
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("tokenizer", [None, "words"])
def test_the_code_of_a_pretrained_folder_is_never_run(
    attack, config, folder, answer, output, pretrained, tokenizer
):
    """With a tokenizer of its own, all depends on the network: nothing fails before it."""
    layer = {"name": "net", "type": "transformers", "path": folder, "output": output}
    layer |= {"pretrained": pretrained}
    attack.write("texts.csv", "text,label\na,x\na a,y\na,x\na a,y\n")
    data = {"source": {"type": "csv", "path": "texts.csv"}, "transforms": [{"type": "tokenize"}]}
    if tokenizer is not None:
        data["transforms"][0]["tokenizer"] = tokenizer
    head = config["model"]["layers"][-1]
    layers = [layer] if output == "logits" else [layer, head]
    attack.write("x.yaml", config | {"model": {"layers": layers}, "data": data})
    attack.harmless("train", "x.yaml", stdin=answer)


def test_nobody_is_asked_whether_the_code_of_a_tokenizer_may_run(attack, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    with contextlib.suppress(DataError):
        load_tokenizer(folder, ("data", "transforms", 0))
    assert sys.stdin.tell() == 0
    assert not attack.canary.exists()


FILES = ["config.json", "tokenizer_config.json", "tokenizer.json", "preprocessor_config.json"]
CONTENTS = {
    "list": "[]",
    "deep": "[" * 100_000,
    "deep and closed": "[" * 5000 + "]" * 5000,
    "text": '"x"',
    "nonsense": "{",
    "wrong types": '{"model_type": 3, "hidden_size": "x", "size": "x", "image_mean": 3,'
    ' "image_std": {}, "tokenizer_class": [], "model": 3, "crop_size": [1]}',
    "a huge network": '{"model_type": "bert", "hidden_size": 1000000000000}',
    "bytes": b"\xff\x00",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_pretrained_folder_that_makes_no_sense_is_refused_in_one_line(
    attack, config, name, content
):
    good = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 20}
    good |= {"num_hidden_layers": 1, "intermediate_size": 8}
    attack.write("net/config.json", json.dumps(good))
    attack.write("net/vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    attack.write(f"net/{name}", content)
    attack.write("texts.csv", "text,label\na,x\na a,y\na,x\na a,y\n")
    data = {"source": {"type": "csv", "path": "texts.csv"}, "transforms": [{"type": "tokenize"}]}
    layer = {"name": "net", "type": "transformers", "path": "net", "pretrained": False}
    layers = [layer, config["model"]["layers"][-1]]
    attack.write("x.yaml", config | {"model": {"layers": layers}, "data": data})
    attack.harmless("train", "x.yaml")


@pytest.mark.parametrize(
    "names", [{"a": "../../secret.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, None, [], "x"]
)
def test_an_index_cannot_name_weights_elsewhere(attack, config, names):
    settings = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1}
    attack.write("net/config.json", json.dumps(settings))
    attack.write("net/model.safetensors.index.json", json.dumps({"weight_map": names}))
    layer = {"name": "net", "type": "transformers", "path": "net"}
    layers = [layer, config["model"]["layers"][-1]]
    attack.write("x.yaml", config | {"model": {"layers": layers}})
    assert "which is no file beside it" in attack.refused("train", "x.yaml")
