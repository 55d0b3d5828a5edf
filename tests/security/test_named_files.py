"""Data names files: in every form, for training and prediction, they stay inside its folder."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import finetune

CONFIG = {
    "model": {
        "layers": [
            {"type": "Flatten"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.1},
    "train": {"epochs": 1, "batch_size": 4, "device": "cpu"},
    "cache": "off",
}
OUTSIDE = ["../secret.png", "a/../../secret.png", "{folder}/secret.png", "link.png", "out/x.png"]
SOURCE = """
import json
import datasets
from pathlib import Path


def made(form, name):
    images = ["data/a/0.png", "data/a/1.png", name]
    labels = ["a", "b", "a"]
    struct = [{"bytes": None, "path": image} for image in images]
    match form:
        case "text":
            return {"image": images, "label": labels}
        case "struct":
            return {"image": struct, "label": labels}
        case "items":
            return [{"image": image, "label": label} for image, label in zip(images, labels)]
    kind = datasets.Image() if form == "image" else datasets.Audio()
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": kinds, "label": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": struct, "label": labels}, features=features)
    return made.cast_column("image", kind)
"""


@pytest.fixture
def images(attack):
    """A folder `data` of images, one beside it, and links that lead there."""
    for number in range(6):
        path = attack.folder / f"data/a/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number * 20, np.uint8)).save(path)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(attack.folder / "secret.png")
    (attack.folder / "data/link.png").symlink_to(attack.folder / "secret.png")
    (attack.folder / "data/out").symlink_to(attack.folder)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(attack.folder / "x.png")
    return attack.folder / "data"


def train_on(attack, source, *more):
    attack.write("x.yaml", CONFIG | {"data": {"source": source}})
    return attack.refused("train", "x.yaml", *more)


def rows(name):
    names = ["a/0.png", "a/1.png", name]
    return [{"image": each, "label": label} for each, label in zip(names, "aba", strict=True)]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("form", ["text", "struct"])
def test_a_line_of_json_cannot_name_an_image_outside(attack, images, name, form):
    name = name.format(folder=attack.folder)
    lines = rows(name)
    if form == "struct":
        lines = [row | {"image": {"bytes": None, "path": row["image"]}} for row in lines]
    attack.write("data/x.jsonl", "\n".join(map(json.dumps, lines)))
    line = train_on(attack, {"type": "jsonl", "path": "data/x.jsonl"})
    assert f"row 3 of data/x.jsonl names {name!r}, which leaves the folder 'data'" in line


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["text", "struct", "image", "audio"])
def test_a_data_set_cannot_name_a_file_outside(attack, images, name, kind):
    from datasets import Dataset, Features, Value

    name = name.format(folder=attack.folder)
    struct = {"bytes": Value("binary"), "path": Value("string")}
    names = [f"{images}/a/0.png", f"{images}/a/1.png", name]
    cells = names if kind == "text" else [{"bytes": None, "path": each} for each in names]
    features = Features({"image": Value("string") if kind == "text" else struct})
    features["label"] = Value("string")
    made = Dataset.from_dict({"image": cells, "label": ["a", "b", "a"]}, features=features)
    made.save_to_disk(str(images))
    if kind in ("image", "audio"):  # which the library would not write: it takes in the files
        info = json.loads((images / "dataset_info.json").read_text())
        info["features"]["image"] = {"_type": kind.capitalize()}
        (images / "dataset_info.json").write_text(json.dumps(info))
    line = train_on(attack, {"type": "huggingface", "path": "data"})
    assert f"names {name!r}, which leaves the folder 'data'" in line
    assert "row 3 of " in line


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("struct", "row 3 of data/x.parquet names '../secret.png', which leaves"),
        ("audio", "column 'image' holds no recording in row 1"),
    ],
)
def test_a_parquet_file_cannot_either(attack, images, kind, said):
    from datasets import Audio, Dataset, Features, Value

    struct = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"image": struct, "label": Value("string")})
    cells = [{"bytes": None, "path": name} for name in ("a/0.png", "a/1.png", "../secret.png")]
    made = Dataset.from_dict({"image": cells, "label": ["a", "b", "a"]}, features=features)
    if kind == "audio":
        made = made.cast_column("image", Audio())
    parquet.write_table(made.with_format("arrow")[:], images / "x.parquet")
    line = train_on(attack, {"type": "parquet", "path": "data/x.parquet"})
    assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "struct", "items", "image", "audio"])
@pytest.mark.parametrize("name", ["../beside.png", "/etc/hostname", "data/beyond.png"])
def test_what_imported_data_names_stays_in_the_current_folder(
    attack, images, monkeypatch, name, form
):
    (images / "beyond.png").symlink_to("/etc/hostname")
    attack.write("named_by.py", SOURCE)
    # Python's own file beside a module that it has read is no file of the run.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(attack.folder))
    args = {"form": form, "name": name}
    source = {"type": "import", "path": "named_by:made", "args": args}
    line = train_on(attack, source, "--trust", "named_by")
    assert f"names {name!r}, which leaves the folder '.'" in line
    source["args"]["name"] = "secret.png"
    line = train_on(attack, source | {"within": "data"}, "--trust", "named_by")
    assert "names 'secret.png', which leaves the folder 'data'" in line
    attack.write("y.yaml", CONFIG | {"data": {"source": source}})
    honest = attack.harmless("train", "y.yaml", "--trust", "named_by")
    # Images in a column of recordings are opened, but are no recordings.
    is_image = form != "audio"
    assert honest.code == (0 if is_image else 2)
    assert is_image or "cannot read the recording 'data/a/0.png'" in honest.err


ODD = {
    "text for bytes": {"bytes": base64.b64encode(b"x").decode(), "path": "a/0.png"},
    "neither": {"bytes": None, "path": None},
    "number": {"bytes": None, "path": 5},
    "list": {"bytes": None, "path": ["../secret.png"]},
    "bytes of numbers": {"bytes": [137, 80], "path": None},
}


@pytest.mark.parametrize("cell", ODD.values(), ids=ODD)
def test_a_cell_that_is_no_image_is_told_in_one_line(attack, images, seer, cell):
    attack.write("data/x.jsonl", json.dumps({"image": cell, "label": "a"}))
    line = train_on(attack, {"type": "jsonl", "path": "data/x.jsonl"})
    assert "an image" in line
    assert "data/x.jsonl:1: needs an image" in attack.refused("predict", seer, "data/x.jsonl")


@pytest.fixture
def seer(attack, images):
    """A trained network that takes images."""
    attack.write("data/honest.jsonl", "\n".join(map(json.dumps, rows("a/2.png"))))
    source = {"type": "jsonl", "path": "data/honest.jsonl"}
    attack.write("seer.yaml", CONFIG | {"data": {"source": source}})
    assert attack.harmless("train", "seer.yaml").code == 0
    return attack.folder / "runs" / "seer"


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("form", ["text", "struct"])
def test_what_is_to_be_predicted_cannot_name_it_either(attack, seer, name, form):
    name = name.format(folder=attack.folder)
    cell = name if form == "text" else {"bytes": None, "path": name}
    lines = [json.dumps({"image": "a/0.png"}), json.dumps({"image": cell})]
    attack.write("data/in.jsonl", "\n".join(lines))
    assert attack.refused("predict", seer, "data/in.jsonl").startswith("data/in.jsonl:2: names")


@pytest.mark.parametrize("name", ["../beside.png", "/etc/hostname", "data/beyond.png"])
@pytest.mark.parametrize("form", ["plain", "text", "struct"])
def test_what_standard_input_names_stays_in_the_current_folder(attack, images, seer, name, form):
    (images / "beyond.png").symlink_to("/etc/hostname")
    cell = {"bytes": None, "path": name} if form == "struct" else name
    line = name if form == "plain" else json.dumps({"image": cell})
    told = attack.refused("predict", seer, "-", stdin=f"data/a/0.png\n{line}\n")
    assert told.startswith("-:2: names ")
    assert attack.harmless("predict", seer, "-", stdin="data/a/0.png\nsecret.png\n").code == 0


def test_names_that_the_user_gives_in_python_are_their_own(attack, seer, monkeypatch):
    (attack.folder / "inner").mkdir()
    monkeypatch.chdir(attack.folder / "inner")
    predictor = finetune.load_predictor(seer)
    encoded = io.BytesIO()
    Image.open(attack.folder / "secret.png").save(encoded, "PNG")
    named = [
        "../secret.png",
        attack.folder / "secret.png",
        {"bytes": None, "path": "../secret.png"},
        encoded.getvalue(),
        Image.open("../secret.png"),
    ]
    labels = {prediction.label for prediction in predictor(named)}
    assert len(labels) == 1
