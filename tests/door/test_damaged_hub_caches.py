"""Damage of what the hub's cache holds is told, with the file, before a library passes over it."""

import hashlib
import json
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pytest
import timm
from datasets.arrow_writer import ArrowWriter
from pydantic import TypeAdapter
from safetensors.torch import save_file

from finetune.config.data import DataConfig
from finetune.config.model import ModelConfig
from finetune.config.task_keys import Task
from finetune.data.prepare import open_data
from finetune.data.steps.loaded_tokenizer import load_tokenizer
from finetune.errors import DataError, FinetuneError, ModelError
from finetune.models.declared import TensorSpec, build_network
from finetune.models.hub_cache import fault_of_cache
from finetune.models.preprocessing import read_preprocessing

COMMIT = "a" * 40
ENCODER = {"name": "encoder", "type": "transformers", "path": "stranger/tiny", "output": "mean"}
IDS = {"input_ids": TensorSpec((5,), "int64")}
PHOTO = {"image": TensorSpec((3, 64, 64), "float32")}
WEIGHTS = "model.safetensors"


def fill(repository, files):
    """Write a repository as downloads leave it; return the folder of its snapshot."""
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        large = name.endswith(".safetensors")
        of_git = b"blob %d\0" % len(content) + content
        own = hashlib.sha256(content) if large else hashlib.sha1(of_git)
        (repository / "blobs" / own.hexdigest()).write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", own.hexdigest()))
    return snapshot


@pytest.fixture
def cached(bert, tmp_path, monkeypatch):
    """Put a small BERT with its tokenizer into a cache of the hub; return its snapshot."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {path.name: path.read_bytes() for path in Path(bert).iterdir()}
    return fill(tmp_path / "hub" / "models--stranger--tiny", files)


def load(layer=ENCODER, inputs=IDS):
    config = ModelConfig.model_validate({"layers": [layer]})
    read_preprocessing(config)
    return build_network(config, inputs, classes=3, seed=0, trust=())


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def lose(path):
    path.resolve().unlink()


def refer(text):
    return lambda snapshot: (snapshot.parents[1] / "refs" / "main").write_text(text)


def loop(snapshot):
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(WEIGHTS)


def break_off(snapshot):
    blob = (snapshot / WEIGHTS).resolve()
    (snapshot / WEIGHTS).unlink()
    blob.rename(f"{blob}.incomplete")


def lose_a_part(snapshot):
    (snapshot / WEIGHTS).unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-1-of-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))


DIFFERS = "another content than was downloaded: its hash differs"
DAMAGE = {
    "weights without their file": (lambda s: lose(s / WEIGHTS), f"{WEIGHTS}' leads to no file"),
    "weights without their link": (lambda s: (s / WEIGHTS).unlink(), f"{WEIGHTS}' is missing"),
    "weights cut in their header": (lambda s: cut(s / WEIGHTS, 100), DIFFERS),
    "weights cut in their data": (lambda s: cut(s / WEIGHTS, -40), DIFFERS),
    "weights of no bytes": (lambda s: cut(s / WEIGHTS, 0), DIFFERS),
    "one bit of the weights": (lambda s: flip(s / WEIGHTS), DIFFERS),
    "a link to itself": (loop, f"{WEIGHTS}' leads to no file"),
    "a download that broke off": (break_off, "is missing: its download broke off"),
    "a part that an index names": (lose_a_part, "model-1-of-2.safetensors' is missing"),
    "a config without its file": (lambda s: lose(s / "config.json"), "config.json' leads to no"),
    "a config that is cut": (lambda s: cut(s / "config.json", 50), DIFFERS),
    "a tokenizer without its file": (
        lambda s: lose(s / "tokenizer.json"),
        "tokenizer.json' leads to no file",
    ),
    "settings of a tokenizer without their file": (
        lambda s: lose(s / "tokenizer_config.json"),
        "tokenizer_config.json' leads to no file",
    ),
    "one byte of a tokenizer": (lambda s: flip(s / "tokenizer.json"), DIFFERS),
    "an empty reference": (refer(""), "'refs/main' names no commit"),
    "a reference out of the folder": (refer("../../x"), "'refs/main' names no commit"),
    "a reference with a zero": (refer("a\0b"), "of which there is no snapshot"),
    "a reference to another commit": (refer("b" * 40), "of which there is no snapshot"),
    "no reference": (lambda s: shutil.rmtree(s.parents[1] / "refs"), "'refs/main' cannot be read"),
    "no snapshot": (shutil.rmtree, "of which there is no snapshot"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_network_is_refused_in_one_line_that_names_the_file(cached, damage, told):
    damage(cached)
    with pytest.raises(ModelError) as caught:
        load()
    assert "what the hub's cache holds of 'stranger/tiny' is damaged: " in caught.value.message
    assert told in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.key[-1] == "path"
    assert f"remove the folder {str(cached.parents[1])!r}" in caught.value.hint


def test_a_whole_network_is_loaded_and_so_is_one_whose_files_are_no_links(cached):
    assert load().weights_reports[0].complete
    for path in list(cached.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert load().weights_reports[0].complete


def test_a_mirror_that_names_files_otherwise_is_believed(cached):
    blob = (cached / WEIGHTS).resolve()
    blob.rename(blob.with_name("d41d8cd98f00b204-5"))
    (cached / WEIGHTS).unlink()
    (cached / WEIGHTS).symlink_to("../../blobs/d41d8cd98f00b204-5")
    assert load().weights_reports[0].complete


def test_what_is_only_lost_is_left_to_the_hub_where_it_can_be_asked(cached):
    lose(cached / WEIGHTS)
    assert fault_of_cache("stranger/tiny", weights=True, is_final=False) is None
    flip(cached / "config.json")
    assert DIFFERS in fault_of_cache("stranger/tiny", weights=True, is_final=False)


def test_a_tokenizer_of_another_place_is_looked_at_too(cached):
    assert load_tokenizer("stranger/tiny", ("tokenizer",))
    flip(cached / "tokenizer_config.json")
    with pytest.raises(ModelError, match=f"tokenizer: .*tokenizer_config.json' has {DIFFERS}"):
        load_tokenizer("stranger/tiny", ("tokenizer",))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda s: flip(s / WEIGHTS), DIFFERS),
        (lambda s: cut(s / WEIGHTS, -40), DIFFERS),
        (lambda s: lose(s / WEIGHTS), "leads to no file"),
    ],
    ids=["one bit", "cut", "no file"],
)
def test_a_damaged_network_of_timm_is_refused(tmp_path, damage, told):
    tensors = {n: t.contiguous() for n, t in timm.create_model("test_resnet").state_dict().items()}
    save_file(tensors, tmp_path / "whole")
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = fill(repository, {WEIGHTS: (tmp_path / "whole").read_bytes()})
    args = {"cache_dir": str(tmp_path)}
    layer = {"name": "net", "type": "timm", "architecture": "test_resnet", "args": args}
    assert load(layer, PHOTO).weights_reports[0].loaded
    damage(snapshot)
    with pytest.raises(ModelError, match=r"'timm/test_resnet.r160_in1k' is damaged") as caught:
        load(layer, PHOTO)
    assert told in caught.value.message


def test_weights_that_timm_cannot_read_are_one_line(tmp_path):
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / COMMIT
    fill(snapshot.parents[1], {})
    (snapshot / WEIGHTS).write_bytes(b"\x08" + bytes(20))
    layer = {"name": "net", "type": "timm", "architecture": "test_resnet"}
    with pytest.raises(ModelError, match=r"test_resnet: .*header"):
        load(layer | {"args": {"cache_dir": str(tmp_path)}}, PHOTO)


# Data sets


@pytest.fixture
def prepared_set(tmp_path, monkeypatch):
    """Put a data set into the cache of `datasets`, as it prepares one of the hub; its folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "stranger___tiny" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    label = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    with ArrowWriter(
        path=str(folder / "tiny-train.arrow"), features=features, writer_batch_size=10
    ) as writer:
        for row in range(40):
            writer.write({"text": f"text {row}", "label": row % 2})
        count, size = writer.finalize()
    splits = datasets.SplitDict(dataset_name="tiny")
    splits.add(datasets.SplitInfo("train", num_bytes=size, num_examples=count, dataset_name="tiny"))
    about = {"builder_name": "parquet", "dataset_name": "tiny", "config_name": "default"}
    info = datasets.DatasetInfo(features=features, splits=splits, version="0.0.0", **about)
    info.write_to_directory(str(folder))
    return folder


def read(**source):
    source = {"type": "huggingface", "path": "stranger/tiny", **source}
    config = DataConfig.model_validate({"source": source, "split": {"validation": 0.25}})
    task = TypeAdapter(Task).validate_python({"type": "classification"})
    return open_data(config, task, seed=0, trust=(), limit=None)


def cut_behind_a_batch(path):
    """Keep the first batch of rows of a file of Arrow: to the library that is a whole file."""
    with path.open("rb") as file:
        pyarrow.ipc.open_stream(file).read_next_batch()
        keep = file.tell()
    cut(path, keep)


ARROW, ABOUT = "tiny-train.arrow", "dataset_info.json"
DAMAGED_SETS = {
    "no rows": (lambda f: (f / ARROW).unlink(), "Failed to open local file"),
    "a link to nothing": (
        lambda f: ((f / ARROW).unlink(), (f / ARROW).symlink_to("gone")),
        "Failed to open local file",
    ),
    "rows of no bytes": (lambda f: cut(f / ARROW, 0), "schema message"),
    "cut in the schema": (lambda f: cut(f / ARROW, 100), "Expected to read"),
    "cut in a batch": (lambda f: cut(f / ARROW, -300), "Expected to read"),
    "cut behind a batch": (lambda f: cut_behind_a_batch(f / ARROW), "was cut: its end is missing"),
    "nothing about it": (lambda f: (f / ABOUT).unlink(), "No such file"),
    "about it, cut": (lambda f: cut(f / ABOUT, 50), "delimiter"),
    "about it, no bytes": (lambda f: cut(f / ABOUT, 0), "Expecting value"),
    "about it, a list": (lambda f: (f / ABOUT).write_text("[]"), "list indices"),
    "about it, no parts": (
        lambda f: (f / ABOUT).write_text('{"config_name": "default"}'),
        "no attribute",
    ),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGED_SETS.values(), ids=DAMAGED_SETS)
def test_a_damaged_data_set_is_refused_in_one_line(prepared_set, damage, told):
    assert len(read().train.table) == 30
    damage(prepared_set)
    with pytest.raises(DataError, match=told) as caught:
        read()
    assert "\n" not in caught.value.message
    assert f"remove its cache {str(prepared_set.parents[2])!r}" in caught.value.hint


def test_a_saved_data_set_that_is_cut_behind_a_batch_is_refused(tmp_path):
    rows = {"text": ["a"] * 2500, "label": ["x", "y"] * 1250}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    cut_behind_a_batch(arrow)
    with pytest.raises(FinetuneError, match=f"{arrow.name}: was cut: its end is missing"):
        read(path=str(tmp_path / "saved"))


def test_offline_another_revision_than_the_cached_one_is_refused(prepared_set):
    assert len(read(revision=COMMIT).train.table) == 30
    assert len(read(revision=COMMIT[:7]).train.table) == 30
    with pytest.raises(DataError, match=r"holds the commit a+, of which nobody can tell whether"):
        read(revision="v2")
