"""What was asked to be loaded is loaded, or told: wrappers, containers, halves, other shapes."""

import io
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ViTMAEConfig,
)

from finetune.cli.plans import plan_table, preview, preview_as_data
from finetune.config.model import ModelConfig
from finetune.config.run import Provenance, RunConfig
from finetune.errors import FinetuneError, ModelError
from finetune.freezing.origins import Sources
from finetune.models.declared import TensorSpec, build_network
from finetune.train.wire import build_trainer

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}
IDS = {"input_ids": TensorSpec((5,), "int64")}
PHOTO = {"image": TensorSpec((3, 64, 64), "float32")}
WRAPPERS = ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "backbone.", "net.model."]
TENSORS_OF_BERT = 37


def build(*layers, inputs=IDS, classes=3, **model):
    config = ModelConfig.model_validate({"layers": list(layers), **model})
    return build_network(config, inputs, classes=classes, seed=0, trust=())


def bert(path, **more):
    return {"name": "encoder", "type": "transformers", "path": str(path), "output": "mean", **more}


@pytest.fixture
def folder(tmp_path):
    """Return a folder that holds a small BERT of random weights."""
    torch.manual_seed(5)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without_second_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}


def hint_of(caught):
    return caught.value.hint.removeprefix("try ")


def entries_of(hint):
    """Read the rename that a hint prints, as a person would paste it."""
    return json.loads(hint.removeprefix("rename: ").partition("}")[0] + "}")


# Folders of transformers


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_folder_under_a_wrappers_prefix_is_refused_with_the_rename_that_mends_it(folder, prefix):
    before = load_file(folder / "model.safetensors")
    rewrite(folder, prefixed(prefix))
    with pytest.raises(
        ModelError, match=f"has nothing that fits: {TENSORS_OF_BERT} missing"
    ) as got:
        build(bert(folder))
    assert hint_of(got) == f'rename: {{"{prefix}": ""}}'
    network = build(bert(folder, rename=entries_of(hint_of(got))))
    own = dict(network.encoder.named_parameters())
    assert all(torch.equal(own[name], before[name]) for name in own)
    (report,) = network.weights_reports
    assert (len(report.loaded), report.complete) == (TENSORS_OF_BERT, True)


def test_names_of_another_library_are_mended_by_the_rename_that_is_named(folder):
    rewrite(folder, lambda t: {n.replace("encoder.layer", "blocks.h"): x for n, x in t.items()})
    with pytest.raises(ModelError, match="does not fit: 32 missing") as caught:
        build(bert(folder))
    assert hint_of(caught) == 'rename: {"blocks.h.": "encoder.layer."}'
    network = build(bert(folder, rename=entries_of(hint_of(caught))))
    assert len(network.weights_reports[0].loaded) == TENSORS_OF_BERT


def test_half_the_layers_are_an_error_and_with_strict_false_are_told(folder):
    rewrite(folder, without_second_layer)
    with pytest.raises(ModelError, match="does not fit: 16 missing") as caught:
        build(bert(folder))
    assert caught.value.hint == "strict: false loads what fits"
    (report,) = build(bert(folder, strict=False)).weights_reports
    assert (len(report.loaded), len(report.missing)) == (TENSORS_OF_BERT - 16, 16)


def test_a_tensor_of_another_shape_is_an_error_that_names_both_shapes(folder):
    rewrite(folder, lambda t: t | {"embeddings.word_embeddings.weight": torch.zeros(9, 8)})
    with pytest.raises(ModelError, match=r"1 mismatched .* is \(9, 8\), wants \(20, 8\)"):
        build(bert(folder))
    (report,) = build(bert(folder, strict=False)).weights_reports
    assert report.mismatched == ("embeddings.word_embeddings.weight",)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification])
def test_an_honest_checkpoint_with_another_head_is_loaded_and_its_head_is_told(tmp_path, kind):
    kind(BertConfig(**SIZES)).save_pretrained(tmp_path)
    (report,) = build(bert(tmp_path)).weights_reports
    assert (len(report.loaded), report.complete) == (TENSORS_OF_BERT, True)
    assert all(name.startswith(("cls.", "classifier.", "bert.pooler.")) for name in report.unread)
    assert report.unread


@pytest.mark.parametrize("width", [3, 7])
def test_a_head_of_another_width_is_new_and_one_of_the_same_is_loaded(tmp_path, width):
    made = BertForSequenceClassification(BertConfig(**SIZES, num_labels=width))
    made.save_pretrained(tmp_path)
    network = build(bert(tmp_path, output="logits"))
    (report,) = network.weights_reports
    assert report.mismatched == (() if width == 3 else ("classifier.bias", "classifier.weight"))
    same = width == 3
    assert same == torch.equal(network.encoder.classifier.weight[:3], made.classifier.weight[:3])


def test_a_body_that_is_missing_behind_a_head_is_an_error(tmp_path):
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path)
    rewrite(tmp_path, without_second_layer)
    with pytest.raises(ModelError, match="16 missing"):
        build(bert(tmp_path, output="logits"))


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "net"])
def test_a_container_in_a_folders_bin_file_is_named_and_opened_by_rename(folder, container):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({container: tensors, "epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"{TENSORS_OF_BERT} missing") as caught:
        build(bert(folder))
    assert hint_of(caught) == f'rename: {{"{container}.": ""}}'
    (report,) = build(bert(folder, rename=entries_of(hint_of(caught)))).weights_reports
    assert len(report.loaded) == TENSORS_OF_BERT


def test_a_folder_of_several_files_is_renamed_as_a_whole(folder):
    BertModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="3KB")
    (folder / "model.safetensors").unlink()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        tensors = load_file(folder / name)
        save_file(prefixed("module.")(tensors), folder / name, metadata={"format": "pt"})
    wrapped = {f"module.{name}": file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index | {"weight_map": wrapped})
    )
    (report,) = build(bert(folder, rename={"module.": ""})).weights_reports
    assert len(report.loaded) == TENSORS_OF_BERT


@pytest.mark.parametrize("more", [{"rename": {"a.": ""}}, {"strict": False}])
def test_keys_on_loading_are_refused_where_nothing_is_loaded(more):
    with pytest.raises(ValueError, match="has no effect with pretrained: false"):
        ModelConfig.model_validate({"layers": [bert("x", pretrained=False, **more)]})


# Files of weights


def two_layers():
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).state_dict()


def dense(path, **more):
    layers = [{"type": "Linear", "out_features": 4}, {"type": "Linear", "out_features": 3}]
    whole = {"name": "body", "type": "sequential", "layers": layers}
    numbers = {"x": TensorSpec((5,), "float32")}
    return build({**whole, "weights": {"path": str(path), **more}}, inputs=numbers)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_file_under_a_wrappers_prefix_is_mended_by_the_rename_that_is_named(
    tmp_path, prefix, ending
):
    path, tensors = tmp_path / f"w.{ending}", prefixed(prefix)(two_layers())
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    with pytest.raises(ModelError, match="has nothing that fits: 4 missing") as caught:
        dense(path)
    network = dense(path, rename=entries_of(hint_of(caught)))
    assert len(network.weights_reports[0].loaded) == 4
    assert torch.equal(network.body[0].weight, tensors[f"{prefix}0.weight"])


@pytest.mark.parametrize("inside", ["", "module."])
@pytest.mark.parametrize("container", ["model_state_dict", "net", "ema", "weights_of_mine"])
def test_a_container_is_not_opened_unasked_but_its_rename_is_named(tmp_path, container, inside):
    content = {container: prefixed(inside)(two_layers()), "epoch": 3, "optimizer": {"lr": 1}}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"holds its tensors under '{container}'") as caught:
        dense(tmp_path / "w.pt")
    assert hint_of(caught) == f'rename: {{"{container}.{inside}": ""}}'
    network = dense(tmp_path / "w.pt", rename=entries_of(hint_of(caught)))
    assert len(network.weights_reports[0].loaded) == 4


def test_of_two_networks_in_a_file_the_one_that_is_left_is_told_and_can_be_asked_for(tmp_path):
    averaged = {name: tensor + 1 for name, tensor in two_layers().items()}
    torch.save({"state_dict": two_layers(), "ema": averaged}, tmp_path / "w.pt")
    (report,) = dense(tmp_path / "w.pt").weights_reports
    assert str(report) == "4 tensors loaded from w.pt, from its 'state_dict', not from its 'ema'"
    network = dense(tmp_path / "w.pt", rename={"ema.": ""})
    assert torch.equal(network.body[1].bias, averaged["1.bias"])


def test_lightning_with_more_than_the_network_is_told_both_keys(tmp_path):
    lightning = prefixed("model.")(two_layers()) | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": lightning, "pytorch-lightning_version": "2"}, tmp_path / "w.ckpt.pt")
    with pytest.raises(ModelError) as caught:
        dense(tmp_path / "w.ckpt.pt")
    assert hint_of(caught) == 'rename: {"model.": ""} and strict: false'
    network = dense(tmp_path / "w.ckpt.pt", rename={"model.": ""}, strict=False)
    assert network.weights_reports[0].unexpected == ("loss.weight",)


def test_no_rename_is_named_where_none_would_be_right(tmp_path):
    other = {"fc1.weight": torch.zeros(4, 5), "fc2.weight": torch.zeros(3, 4)}
    save_file(other, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="has nothing that fits") as caught:
        dense(tmp_path / "w.safetensors")
    assert caught.value.hint is None


# Other numbers than those that were trained


def int8(tensor):
    return (tensor * 100).to(torch.int8)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "other", [int8, lambda t: t > 0, lambda t: t.to(torch.float8_e4m3fn)], ids=["i8", "bool", "f8"]
)
def test_whole_numbers_and_floats_of_8_bits_are_never_loaded_as_weights(tmp_path, other, strict):
    tensors = two_layers()
    save_file(tensors | {"1.weight": other(tensors["1.weight"])}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 of 4 tensors: 1.weight is \w+, wants float32"):
        dense(tmp_path / "w.safetensors", strict=strict)


def test_a_folder_with_whole_numbers_for_weights_is_refused(folder):
    name = "encoder.layer.1.output.dense.weight"
    rewrite(folder, lambda tensors: tensors | {name: int8(tensors[name])})
    with pytest.raises(ModelError, match=f"1 of .* tensors: {name} is int8, wants float32"):
        build(bert(folder))


def test_the_step_counter_of_a_batch_norm_may_be_a_whole_number_of_any_width(tmp_path):
    tensors = nn.BatchNorm1d(5).state_dict()
    counter = "num_batches_tracked"
    save_file(tensors | {counter: tensors[counter].to(torch.int32)}, tmp_path / "w.safetensors")
    layer = {"type": "BatchNorm1d", "weights": {"path": str(tmp_path / "w.safetensors")}}
    (report,) = build(layer, inputs={"x": TensorSpec((5,), "float32")}).weights_reports
    assert str(report).endswith(", 1 of 5 converted from int32 to int64")


def test_floats_of_another_width_are_counted_for_files_and_folders(tmp_path, folder):
    tensors = {name: tensor.half() for name, tensor in two_layers().items()}
    save_file(tensors | {"0.bias": two_layers()["0.bias"]}, tmp_path / "w.safetensors")
    (report,) = dense(tmp_path / "w.safetensors").weights_reports
    told = "loaded from w.safetensors, 3 of 4 converted from float16 to float32"
    assert str(report) == f"4 tensors {told}"
    rewrite(
        folder, lambda t: {n: x.bfloat16() if x.is_floating_point() else x for n, x in t.items()}
    )
    (report,) = build(bert(folder)).weights_reports
    assert f"{TENSORS_OF_BERT} of {TENSORS_OF_BERT} converted from bfloat16" in str(report)


@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_a_weight_that_is_no_finite_number_is_named_where_it_is_loaded(tmp_path, folder, wrong):
    tensors, name = two_layers(), "encoder.layer.1.output.dense.bias"
    tensors["1.weight"][2, 1] = wrong
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 with NaN or infinity \(1.weight\)") as caught:
        dense(tmp_path / "w.safetensors")
    assert caught.value.hint == "strict: false loads them as they are"
    (report,) = dense(tmp_path / "w.safetensors", strict=False).weights_reports
    assert str(report).endswith("; 1 with NaN or infinity: 1.weight")
    rewrite(folder, lambda tensors: tensors | {name: torch.full_like(tensors[name], wrong)})
    with pytest.raises(ModelError, match=rf"1 with NaN or infinity \({name}\)"):
        build(bert(folder))


def test_numbers_too_large_for_the_network_are_named(tmp_path):
    tensors = {name: tensor.double() for name, tensor in two_layers().items()}
    tensors["0.bias"][0] = 1e200
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 with NaN or infinity \(0.bias\)"):
        dense(tmp_path / "w.safetensors")


# timm and torchvision


def cached_timm(tmp_path, tensors):
    home = tmp_path / "models--timm--test_resnet.r160_in1k"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(tensors, home / "snapshots" / ("0" * 40) / "model.safetensors")
    args = {"cache_dir": str(tmp_path)}
    return {"name": "net", "type": "timm", "architecture": "test_resnet", "args": args}


@pytest.mark.parametrize("output", ["features", "logits"])
def test_timm_tells_how_much_it_loaded_and_that_the_head_is_new(tmp_path, output):
    tensors = timm.create_model("test_resnet").state_dict()
    layer = cached_timm(tmp_path, {n: t.contiguous() for n, t in tensors.items()})
    network = build(layer | {"output": output}, inputs=PHOTO)
    (report,) = network.weights_reports
    assert report.missing == (("fc.bias", "fc.weight") if output == "logits" else ())
    assert set(report.loaded) == tensors.keys() - {"fc.bias", "fc.weight"}
    assert torch.equal(network.net.bn1.weight, tensors["bn1.weight"])


@pytest.mark.parametrize("change", [prefixed("module."), lambda t: {"bn1.weight": t["bn1.weight"]}])
def test_weights_that_timm_would_pass_over_without_a_word_are_refused(tmp_path, change):
    tensors = timm.create_model("test_resnet").state_dict()
    layer = cached_timm(tmp_path, {n: t.contiguous() for n, t in change(tensors).items()})
    with pytest.raises(ModelError, match=r"'test_resnet' (does not fit|has nothing that fits)"):
        build(layer, inputs=PHOTO)


def test_a_nan_in_the_weights_of_timm_is_named(tmp_path):
    tensors = {n: t.contiguous() for n, t in timm.create_model("test_resnet").state_dict().items()}
    tensors["bn1.weight"][0] = torch.nan
    with pytest.raises(ModelError, match=r"1 with NaN or infinity \(bn1.weight\)"):
        build(cached_timm(tmp_path, tensors), inputs=PHOTO)


def cached_torchvision(tmp_path, monkeypatch, tensors):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(tensors, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    return {"name": "net", "type": "torchvision", "architecture": "squeezenet1_1"}


def test_torchvision_tells_how_much_it_loaded_and_that_the_head_is_new(tmp_path, monkeypatch):
    tensors = models.squeezenet1_1().state_dict()
    layer = cached_torchvision(tmp_path, monkeypatch, tensors)
    (report,) = build(layer | {"output": "logits"}, inputs=PHOTO).weights_reports
    assert report.missing == ("classifier.1.bias", "classifier.1.weight")
    assert len(report.loaded) == len(tensors) - 2


def test_torchvision_over_a_wrapped_file_is_one_line_that_names_a_tensor(tmp_path, monkeypatch):
    tensors = prefixed("module.")(models.squeezenet1_1().state_dict())
    layer = cached_torchvision(tmp_path, monkeypatch, tensors)
    with pytest.raises(ModelError, match=r"Missing key\(s\) in state_dict: .features.0.weight"):
        build(layer, inputs=PHOTO)


# The run


class Told:
    """A tracker that keeps the lines that a person sees."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)

    def __getattr__(self, name):
        return lambda *args, **more: None


def config_of(*, layers, **changes):
    plain = {
        "model": {"layers": layers},
        "data": {"source": {"type": "random", "samples": 24, "features": 5, "targets": 3}},
        "task": {"type": "regression"},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"steps": 2, "batch_size": 8},
        "cache": "off",
    }
    return RunConfig.model_validate(plain | changes).with_provenance(Provenance(), {})


def run_of(tmp_path, **config):
    told = Told()
    return build_trainer(config_of(**config), tmp_path / "run", tracker=told), told


def layers_with(path):
    weights = {"path": str(path), "strict": False}
    inner = [{"type": "Linear", "out_features": 4}, {"type": "Linear", "out_features": 4}]
    return [
        {"name": "body", "type": "sequential", "layers": inner, "weights": weights},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]


@pytest.fixture
def half(tmp_path):
    tensors = {"0.weight": torch.ones(4, 5), "0.bias": torch.ones(4)}
    save_file(tensors, tmp_path / "half.safetensors")
    return tmp_path / "half.safetensors"


def test_the_proof_counts_what_was_loaded_and_what_is_as_initialised(tmp_path, half):
    trainer, _ = run_of(tmp_path, layers=layers_with(half), freeze=["body"])
    trainer.fit()
    (phase,) = json.loads((tmp_path / "run" / "freeze_proof.json").read_text())["phases"]
    counts = {"tensors": 4, "loaded": 2, "as_initialised": 2, "trained_before": 0, "constants": 0}
    assert {name: phase[name] for name in counts} == counts


def test_the_proof_does_not_call_loaded_what_a_phase_before_has_trained(tmp_path, half):
    phases = [
        {"name": "one", "freeze": ["head"], "until": {"steps": 1}},
        {"name": "two", "freeze": ["body"]},
    ]
    trainer, _ = run_of(tmp_path, layers=layers_with(half), freeze={"phases": phases})
    trainer.fit()
    document = json.loads((tmp_path / "run" / "freeze_proof.json").read_text())
    one, two = document["phases"]
    assert (one["as_initialised"], one["loaded"]) == (2, 0)
    assert (two["trained_before"], two["loaded"], two["as_initialised"]) == (4, 0, 0)


@pytest.mark.parametrize("loads", [True, False])
def test_constants_of_a_network_are_neither_loaded_nor_random(tmp_path, folder, loads):
    network = build(bert(folder, pretrained=loads))
    sources = Sources.of(network, network.weights_reports)
    names = [name for name, _ in [*network.named_parameters(), *network.named_buffers()]]
    counted = sources.count(names, ())
    assert (counted.loaded, counted.constants) == (TENSORS_OF_BERT * loads, 2)
    assert counted.as_initialised == TENSORS_OF_BERT * (not loads)


def test_a_trained_tensor_that_never_moved_is_named_at_the_end(tmp_path, half):
    # What was loaded is 1.0, which a step of 1e-30 does not change
    rates = {"*": 0.1, "body.0": 1e-30}
    freeze = {"phases": [{"name": "all", "freeze": [], "lr": rates}]}
    trainer, told = run_of(tmp_path, layers=layers_with(half), freeze=freeze)
    trainer.fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["never_moved"] == ["body.0.bias", "body.0.weight"]
    line = "2 trained tensors never moved in the whole run: 'body.0.bias', 'body.0.weight'"
    assert told.lines[-1] == line


def test_weights_and_what_is_frozen_as_initialised_are_told_as_a_run_begins(tmp_path, half):
    _, told = run_of(tmp_path, layers=layers_with(half), freeze=["body"])
    loaded, frozen = [line for line in told.lines if line.startswith("weights: ")]
    assert loaded.startswith("weights: body: 2 tensors loaded from half.safetensors; 2 missing: ")
    assert frozen.startswith("weights: phase 'all' freezes 2 tensors as they were initialised")
    assert "'body.1.weight'" in frozen


def test_a_run_in_which_all_moved_names_nothing(tmp_path, half):
    trainer, told = run_of(tmp_path, layers=layers_with(half))
    trainer.fit()
    assert not any("never moved" in line for line in told.lines)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["never_moved"] == []


def test_the_plan_tells_of_weights_and_lints_what_is_frozen_as_initialised(tmp_path, half):
    seen, shown = preview(config_of(layers=layers_with(half), freeze=["body"])), io.StringIO()
    plan_table(seen, shown, full=False)
    assert "weights  body: 2 tensors loaded from half.safetensors; 2 missing: " in shown.getvalue()
    assert "phase 'all' freezes 2 tensors as they were initialised" in shown.getvalue()
    document = preview_as_data(seen)
    on_weights = [lint for lint in document["lints"] if "initialised" in lint["message"]]
    assert len(document["weights"]) == len(on_weights) == 1


def test_the_last_lines_tell_what_the_proof_is_a_proof_of(tmp_path, half, capsys):
    trainer, _ = run_of(tmp_path, layers=layers_with(half), freeze=["body"])
    trainer.fit()
    told = "of the frozen tensors: 2 loaded from weights, 2 as initialised"
    assert told in capsys.readouterr().err


# The first cause first, and without the insides of a library


def test_no_message_shows_a_class_of_a_library(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTMAEConfig(**small, intermediate_size=8, image_size=32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="transformers has no head for output 'logits'") as caught:
        build(bert(tmp_path, output="logits", pretrained=False), inputs=PHOTO)
    assert "<class" not in str(caught.value)
    assert "'vit_mae'" in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"type": "torchvision", "architecture": "resnet19"}, "no network 'resnet19'"),
        ({"type": "timm", "architecture": "resnet19x"}, "timm has no architecture"),
        ({"type": "timm", "architecture": "resnet18.nonsense"}, "timm has no weights"),
        ({"type": "timm", "architecture": "hf-hub:nobody/nothing"}, "from the hub"),
        ({"type": "transformers", "path": "nobody/nothing"}, "from the hub"),
    ],
)
def test_a_network_that_cannot_be_found_is_told_before_the_data_that_it_would_have_read(
    tmp_path, layer, said
):
    for number, side in enumerate((40, 48)):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        for copy in range(4):
            image = Image.new("RGB", (side + copy, side))
            image.save(tmp_path / "data" / str(number) / f"{copy}.png")
    head = {"name": "head", "type": "Linear", "out_features": "classes"}
    source = {"source": {"type": "imagefolder", "path": str(tmp_path / "data")}}
    with pytest.raises(FinetuneError, match=said) as caught:
        run_of(tmp_path, layers=[layer, head], data=source, task={"type": "classification"})
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_weights_that_cannot_be_fetched_tell_what_may_be_done_offline(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    architecture = {"torchvision": "squeezenet1_1", "timm": "test_resnet"}[kind]
    args = {"cache_dir": str(tmp_path)} if kind == "timm" else {}
    layer = {"type": kind, "architecture": architecture, "args": args}
    with pytest.raises(ModelError) as caught:
        build(layer, inputs=PHOTO)
    assert "pretrained: false" in caught.value.hint
