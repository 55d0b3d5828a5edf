"""Pickles that run a command when loaded, put wherever a file is read: none is ever unpickled."""

import io
import json
import os
import pickle
import shutil
import zipfile
from hashlib import blake2b

import numpy as np
import pytest
import torch

from finetune.errors import ModelError
from finetune.models.weights import refuse_old_torch


class Bomb:
    """Runs a command as soon as it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def torch_zip(bomb):
    """Return what `torch.save` makes of it: a zip with a pickle inside."""
    file = io.BytesIO()
    torch.save({"body.weight": bomb}, file)
    return file.getvalue()


def torch_legacy(bomb):
    """Return the form of torch before 1.6: pickles one after another."""
    file = io.BytesIO()
    torch.save({"body.weight": bomb}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def npy(bomb):
    """Return an array of objects as numpy stores it."""
    file = io.BytesIO()
    np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    return file.getvalue()


def npz(bomb):
    """Return such an array inside an archive."""
    file = io.BytesIO()
    np.savez(file, features=np.array([bomb], dtype=object))
    return file.getvalue()


FORMS = {
    **{f"protocol {n}": lambda bomb, n=n: pickle.dumps(bomb, n) for n in (0, 2, 5)},
    "torch": torch_zip,
    "torch of old": torch_legacy,
    "npy": npy,
    "npz": npz,
}
FILES = [
    "config.yaml",
    "plan.json",
    "data.json",
    "metrics.jsonl",
    "summary.json",
    "freeze_proof.json",
    "checkpoints/STEP/weights.safetensors",
    "checkpoints/STEP/optimizer.safetensors",
    "checkpoints/STEP/progress.json",
    "checkpoints/STEP/MANIFEST.json",
    "tensorboard/EVENTS",
]


def newest(run):
    return sorted((run / "checkpoints").iterdir())[-1]


def sealed(checkpoint):
    """Write the manifest anew, so that sizes and digests are those of the files as they are now."""
    path = checkpoint / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    # a digest of its own is as easily left out
    manifest.pop("blake2b", None)
    for name, facts in manifest["files"].items():
        raw = (checkpoint / name).read_bytes()
        facts |= {"size_bytes": len(raw), "blake2b": blake2b(raw, digest_size=16).hexdigest()}
    path.write_text(json.dumps(manifest))


def commands(planted):
    """Every verb that reads a run folder; the last one goes on training in it."""
    yield "eval", planted
    yield "predict", planted, "points.csv"
    yield "train", "honest.yaml", "-o", "train.epochs=3"


def test_the_bombs_are_live(attack):
    """Otherwise nothing below would prove anything."""
    for name, form in FORMS.items():
        raw = form(Bomb(attack.command))
        if "npy" in name or "npz" in name:
            loaded = np.load(io.BytesIO(raw), allow_pickle=True)
            _ = loaded["features"] if "npz" in name else loaded
        elif "torch" in name:
            torch.load(io.BytesIO(raw), weights_only=False)
        else:
            pickle.loads(raw)
        assert attack.canary.exists(), name
        attack.canary.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_any_file_of_a_run_is_not_unpickled(attack, planted, name, form):
    checkpoint = newest(planted)
    name = name.replace("STEP", checkpoint.name)
    if name == "tensorboard/EVENTS":
        name = f"tensorboard/{next((planted / 'tensorboard').iterdir()).name}"
    for command in commands(planted):
        (planted / name).write_bytes(form(Bomb(attack.command)))
        attack.harmless(*command)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_pickle_that_the_manifest_vouches_for_is_not_unpickled(attack, planted, name, form):
    """Digests keep out accidents, not attackers: what they fit is still no pickle to us."""
    for step in (planted / "checkpoints").iterdir():
        (step / name).write_bytes(form(Bomb(attack.command)))
        sealed(step)
    for command in commands(planted):
        attack.harmless(*command)


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "random_states_0.pkl", "x.pth"])
def test_a_file_that_is_none_of_ours_is_left_alone(attack, planted, name):
    (newest(planted) / name).write_bytes(pickle.dumps(Bomb(attack.command)))
    (planted / name).write_bytes(pickle.dumps(Bomb(attack.command)))
    for command in commands(planted):
        attack.harmless(*command)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl", "safetensors"])
@pytest.mark.parametrize("place", ["model", "layer"])
def test_weights_that_are_a_bomb_are_refused(attack, config, form, ending, place):
    attack.write(f"w.{ending}", form(Bomb(attack.command)))
    weights = {"path": f"w.{ending}", "strict": False}
    model = dict(config["model"])
    if place == "model":
        model["weights"] = weights
    else:
        model["layers"] = [model["layers"][0] | {"weights": weights}, *model["layers"][1:]]
    attack.write("x.yaml", config | {"model": model})
    line = attack.refused("train", "x.yaml")
    assert line.startswith("x.yaml:")
    assert f"'w.{ending}'" in line


def test_an_archive_of_weights_is_not_unpacked(attack, config):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../outside", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(attack.command)))
        archive.writestr("archive/version", "3")
    attack.write("w.pt", file.getvalue())
    model = config["model"] | {"weights": {"path": "w.pt"}}
    attack.write("x.yaml", config | {"model": model})
    attack.refused("train", "x.yaml")
    assert not (attack.folder.parent / "outside").exists()


@pytest.mark.parametrize("form", [npy, npz], ids=["npy", "npz"])
def test_data_that_is_a_bomb_is_refused(attack, config, form):
    attack.write("data.np", form(Bomb(attack.command)))
    source = {"type": "arrays", "path": "data.np"}
    attack.write("x.yaml", config | {"data": {"source": source}})
    assert "holds Python objects" in attack.refused("train", "x.yaml")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrays"])
def test_a_pickle_in_place_of_data_is_refused(attack, config, kind, form):
    attack.write("data", form(Bomb(attack.command)))
    attack.write("x.yaml", config | {"data": {"source": {"type": kind, "path": "data"}}})
    attack.refused("train", "x.yaml")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_pretrained_folder_with_a_bomb_is_refused(attack, config, small_bert, name, form):
    (small_bert / "model.safetensors").unlink()
    (small_bert / name).write_bytes(form(Bomb(attack.command)))
    layer = {"name": "net", "type": "transformers", "path": "bert"}
    attack.write("x.yaml", config | {"model": {"layers": [layer, config["model"]["layers"][-1]]}})
    attack.refused("train", "x.yaml")


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg_overlay"])
def test_timm_is_not_handed_a_file_of_weights(attack, config, argument):
    attack.write("w.pth", torch_zip(Bomb(attack.command)))
    value = "w.pth" if argument == "checkpoint_path" else {"file": "w.pth"}
    layer = {"name": "net", "type": "timm", "architecture": "resnet18", "args": {argument: value}}
    attack.write("x.yaml", config | {"model": {"layers": [layer]}})
    assert "by the key 'weights'" in attack.refused("train", "x.yaml")


@pytest.mark.parametrize("version", ["2.5.1", "2.9.0+cpu", "1.13", "nonsense"])
def test_an_old_torch_opens_no_foreign_pickle(tmp_path, version):
    with pytest.raises(ModelError, match="which is not safe for it"):
        refuse_old_torch(version, tmp_path / "w.pt", key=())
    refuse_old_torch("2.10.0", tmp_path / "w.pt", key=())
    refuse_old_torch("3.0.1+cu130", tmp_path / "w.pt", key=())


@pytest.fixture
def small_bert(attack):
    """A pretrained folder of a tiny network, made here."""
    from transformers import BertConfig, BertModel

    folder = attack.folder / "bert"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=20, intermediate_size=8, **sizes)).save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)
