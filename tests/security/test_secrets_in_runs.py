"""A run that uses a secret: no file, no curve, no checkpoint and no verb tells anything of it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save_file

import finetune
from finetune.errors import FinetuneError

VALUE = "S3cr3t V4lue"
NET = """\
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, key):
        print("a network for", key)
        super().__init__(nn.Linear(2, classes))
        self.key = key

def loss(key):
    def losses(outputs, batch):
        raise RuntimeError(f"{key} is refused")
    return losses
"""
NAMES = {
    "name": {"name": "${env:TOK}"},
    "a part of it": {"name": "run-${env:TOK}"},
    "model.layers.0.name": {"model": {"layers": [{"name": "${env:TOK}", "type": "Linear"}]}},
    "model.layers.0.inputs.0": {"model": {"layers": [{"type": "Tanh", "inputs": ["${env:TOK}"]}]}},
    "model.layers.0.layers.0.name": {
        "model": {
            "layers": [
                {"type": "sequential", "layers": [{"name": "${env:TOK}", "type": "Linear"}]}
            ]
        }
    },
    "model.layers.0.path": {"model": {"layers": [{"type": "import", "path": "a:${env:TOK}"}]}},
    "data.inputs.1": {"data": {"inputs": ["u", "${env:TOK}"]}},
    "data.target": {"data": {"target": "${env:TOK}"}},
    "data.transforms.0.columns.0": {
        "data": {"transforms": [{"type": "stack", "columns": ["${env:TOK}"]}]}
    },
    "data.transforms.0.name": {"data": {"transforms": [{"type": "stack", "name": "${env:TOK}"}]}},
    "task.losses.name": {
        "task": {"type": "regression", "losses": {"type": "mse", "name": "${env:TOK}"}}
    },
    "freeze.phases.0.name": {"freeze": {"phases": [{"name": "${env:TOK}", "freeze": []}]}},
    "freeze.phases.0.until.plateau": {
        "freeze": {
            "phases": [{"name": "a", "freeze": [], "until": {"plateau": "validation/${env:TOK}"}}]
        }
    },
    "train.early_stopping.metric": {"train": {"early_stopping": {"metric": "${env:TOK}"}}},
    "train.checkpoint.best": {"train": {"checkpoint": {"best": "${env:TOK}"}}},
}  # fmt: skip


@pytest.fixture
def place(attack, monkeypatch):
    """The attack's folder, with a cache of its own, a package, and data in a folder of a secret."""
    monkeypatch.setenv("FINETUNE_CACHE", str(attack.folder / "cache"))
    attack.write("my_pkg/__init__.py", NET)
    monkeypatch.syspath_prepend(attack.folder)
    points = (attack.folder / "points.csv").read_bytes()
    attack.write(f"{VALUE}/points.csv", points)
    (attack.folder / "link").symlink_to(attack.folder / VALUE)
    yield attack
    sys.modules.pop("my_pkg", None)


def with_source(config, path, **more):
    config = copy.deepcopy(config)
    config["data"]["source"] = {"type": "csv", "path": path, **more}
    return config


def with_weights(config, path):
    config = copy.deepcopy(config)
    config["model"]["layers"][0]["weights"] = {"path": path}
    return config


def with_key(config, **args):
    layer = {"name": "net", "type": "import", "path": "my_pkg:Net"}
    return config | {"model": {"layers": [layer | {"args": {"classes": "classes", **args}}]}}


MAKE = {
    "a folder": (VALUE, lambda c: with_source(c, "./${env:TOK}//points.csv")),
    "a folder with strokes": (f"./{VALUE}/", lambda c: with_source(c, "${env:TOK}/points.csv")),
    "a whole path": (f"{VALUE}//./points.csv", lambda c: with_source(c, "${env:TOK}")),
    "an absolute path": ("{here}/" + VALUE, lambda c: with_source(c, "${env:TOK}/points.csv")),
    "a way round": (f"runs/../{VALUE}", lambda c: with_source(c, "${env:TOK}/points.csv")),
    "a link": ("./link", lambda c: with_source(c, "${env:TOK}/points.csv")),
    "a limit": (
        VALUE,
        lambda c: with_source(c, "points.csv", within="./${env:TOK}/.."),
    ),
    "weights": (f"{VALUE}/", lambda c: with_weights(c, "${env:TOK}/w.safetensors")),
    "an argument": (VALUE, lambda c: with_key(c, key="<${env:TOK}>")),
}


def leaks(folder):
    """Return the files below a folder that hold the secret, in any spelling or in their name."""
    spelt = {VALUE, quote(VALUE), json.dumps(VALUE)[1:-1]}
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and any(s in str(path.name) or s.encode() in path.read_bytes() for s in spelt)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", MAKE)
def test_no_verb_writes_or_tells_a_secret_of_a_run(place, config, monkeypatch, case):
    value, made = MAKE[case]
    monkeypatch.setenv("TOK", value.format(here=place.folder))
    save_file(
        {"weight": torch.zeros(4, 2), "bias": torch.zeros(4)},
        place.folder / VALUE / "w.safetensors",
    )
    document = made(config) | {"freeze": [{"kind": "bias"}]}
    place.write("x.yaml", document)
    (place.folder / "runs").mkdir()
    trust = ("--trust", "my_pkg")
    verbs = [
        ("validate", "x.yaml"),
        ("plan", "x.yaml", *trust),
        ("plan", "x.yaml", "--json", *trust),
        ("plan", "x.yaml", "--write", "runs/long.yaml", *trust),
        ("inspect", "x.yaml", "--activations", *trust),
        ("train", "x.yaml", *trust),
        ("train", "x.yaml", "-o", "train.epochs=3", *trust),
        ("train", "x.yaml", "--run", "runs/y", "--resume", "runs/x", *trust),
        ("eval", "runs/x", "--json", *trust),
        ("predict", "runs/x", "points.csv", *trust),
        ("doctor", "runs/x"),
        ("doctor", "runs/x", "--json"),
        ("cache", "ls", "--json"),
        ("runs", "runs"),
        ("runs", "runs", "--json"),
        ("diff", "runs/x", "runs/y"),
        ("diff", "runs/x", "runs/y", "--json"),
        ("report", "runs/x", "runs/y", "--out", "runs/both.html"),
        ("certify", "runs/x", "--out", "runs/c.json", *trust),
        ("certify", "--check", "runs/c.json"),
        ("export", "runs/x", "--format", "safetensors", "--out", "runs/exported", *trust),
    ]
    for verb in verbs:
        outcome = place.harmless(*verb)
        assert outcome.code == 0, (verb, outcome)
        assert VALUE not in outcome.out + without_prints(outcome.err), verb
    assert leaks(place.folder / "runs") == []
    assert not (place.folder / "cache").exists() or leaks(place.folder / "cache") == []
    assert "${env:TOK}" in (place.folder / "runs/x/config.yaml").read_text()
    assert list((place.folder / "runs/x/tensorboard").iterdir())

    for path in ("points.csv", f"{VALUE}/points.csv", f"{VALUE}/w.safetensors"):
        (place.folder / path).unlink()
    for verb in (("train", "x.yaml", "--fresh", *trust), ("eval", "runs/x", *trust)):
        outcome = place.harmless(*verb)
        assert outcome.code == 2
        assert VALUE not in outcome.out + without_prints(outcome.err), verb


def without_prints(err):
    """Leave out what the user's own network prints: in this process, nobody redacts it."""
    return "\n".join(line for line in err.splitlines() if not line.startswith("a network for"))


@pytest.mark.parametrize("key", NAMES)
def test_a_secret_cannot_be_a_name(place, config, monkeypatch, key):
    monkeypatch.setenv("TOK", "S3cr3tV4lue")
    document = copy.deepcopy(config)
    for section, change in NAMES[key].items():
        # a section that names its nodes replaces the honest one
        keeps = isinstance(change, dict) and section in ("data", "train")
        document[section] = document[section] | change if keeps else change
    place.write("x.yaml", document)
    assert "S3cr3t" not in place.harmless("validate", "x.yaml").err
    place.refused("train", "x.yaml")
    err = place.harmless("train", "x.yaml").err
    where = "name" if key == "a part of it" else key
    assert f": {where}: a name cannot come from the environment, got " in err
    assert not (place.folder / "runs").exists()


def test_a_selector_may_hold_a_secret_and_is_saved_as_its_words(place, config, monkeypatch):
    monkeypatch.setenv("TOK", "body")
    phase = {"name": "body", "freeze": ["${env:TOK}", {"regex": "${env:TOK}.*"}]}
    place.write("x.yaml", config | {"freeze": {"phases": [phase]}})
    assert place.harmless("train", "x.yaml").code == 0
    saved = (place.folder / "runs/x/config.yaml").read_text()
    assert saved.count("${env:TOK}") == 2
    assert place.harmless("eval", "runs/x").code == 0
    monkeypatch.setenv("TOK", "S3cr3tV4lue")
    assert "'${env:TOK}' takes no parameter" in place.refused("plan", "x.yaml")


def test_python_raises_no_secret(place, config, monkeypatch):
    monkeypatch.setenv("TOK", "S3cr3tV4lue")
    place.write("x.yaml", with_source(config, "data/../${env:TOK}/points.csv"))
    with pytest.raises(FinetuneError) as caught:
        finetune.build_trainer(finetune.load_config("x.yaml"), "runs/x")
    place.write("y.yaml", {"extends": ["${env:TOK}.yaml"]})
    with pytest.raises(FinetuneError) as other:
        finetune.load_config("y.yaml")
    assert not any("S3cr3tV4lue" in chain(error.value) for error in (caught, other))


def chain(error):
    """Return all that Python would print of an error and its causes, but for lines of source."""
    texts = []
    while error is not None:
        texts.append(f"{error!s}{error!r}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


@pytest.mark.slow
def test_neither_a_bug_nor_a_print_tells_a_secret(place, config, monkeypatch):
    loss = {"type": "import", "path": "my_pkg:loss", "args": {"key": "${env:TOK}"}}
    document = with_key(config, key="${env:TOK}", password="written-in-it")
    place.write("my_pkg/__init__.py", NET.replace("classes, key", "classes, key, password"))
    document["task"] = {"type": "classification", "losses": [loss]}
    place.write("x.yaml", document)
    program = "import sys; from finetune.__main__ import run; sys.argv[0] = 'finetune'; run()"
    paths = [str(place.folder), str(Path(finetune.__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "x.yaml", "--trust", "my_pkg"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOK": "S3cr3tV4lue"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "${env:TOK} is refused" in done.stderr
    assert "a network for ${env:TOK}" in done.stderr
    assert "S3cr3tV4lue" not in done.stdout + done.stderr
    assert done.returncode in (1, 2)
