"""A rename mends names that differ within: a wrapper's part, TensorFlow's words for a norm."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.config.layer_keys import WeightsConfig
from finetune.errors import ModelError
from finetune.models.renaming import mending, renamed
from finetune.models.weights import load_weights


def network():
    return nn.ModuleDict(
        {"body": nn.Linear(2, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)}
    )


def changed(change):
    torch.manual_seed(1)
    return {change(name): tensor for name, tensor in network().state_dict().items()}


def of_norms(name):
    if not name.startswith("norm"):
        return name
    return name.replace("weight", "gamma").replace("bias", "beta")


CHANGES = {
    "within": lambda name: name.replace(".", "._fsdp_wrapped_module."),
    "before and within": lambda name: f"_w.{name.replace('.', '._w.')}",
    "adapter": lambda name: name.replace(".", ".base_layer."),
    "norms": of_norms,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_rename_that_is_printed_loads_every_tensor(tmp_path, change):
    theirs = changed(change)
    save_file(theirs, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="try rename") as error:
        load_weights(network(), WeightsConfig(path=path), key=())
    rename = mending(network().state_dict().keys(), theirs.keys())
    assert str(rename).replace("'", '"') in str(error.value)
    model = network()
    report = load_weights(model, WeightsConfig(path=path, rename=rename), key=())
    assert len(report.loaded) == 6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[change(name)])


def test_a_part_that_no_name_holds_is_told():
    with pytest.raises(ModelError, match="no name of the file holds 'gamma'"):
        renamed({"a.weight": torch.zeros(1)}, {"*gamma": "weight"}, ())


def test_an_entry_is_used_on_what_an_entry_before_it_has_made():
    rename = {"*.gamma": ".scale", "*.scale": ".weight", "norm.": "n."}
    tensors = {"norm.gamma": torch.zeros(1)}
    assert list(renamed(tensors, rename, ())) == ["n.weight"]
    with pytest.raises(ModelError, match=r"no name of the file holds '\.gamma'"):
        renamed(tensors, {"*norm": "n", "*gamma": "weight", "*.gamma": ".scale"}, ())


def test_weights_that_are_zero_throughout_are_counted(tmp_path):
    tensors = network().state_dict()
    tensors["head.weight"].zero_()
    save_file(tensors, tmp_path / "w.safetensors")
    report = load_weights(network(), WeightsConfig(path=str(tmp_path / "w.safetensors")), key=())
    assert "1 of 6 hold nothing but zeros, such as head.weight" in report.remark


@pytest.mark.parametrize(
    ("name", "hint"),
    [("parametrizations.weight.original0", "stored in factors"), ("qweight", "quantised")],
)
def test_names_that_tell_how_weights_were_stored_lead_to_a_hint(tmp_path, name, hint):
    tensors = network().state_dict()
    tensors[f"body.{name}"] = tensors.pop("body.weight")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=hint):
        load_weights(network(), WeightsConfig(path=str(tmp_path / "w.safetensors")), key=())
