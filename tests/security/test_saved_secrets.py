"""No byte of a secret is in what a run writes, and the run goes on all the same."""

import copy
import sys

import pytest

import finetune
from finetune.errors import ConfigError

PACKAGE = """\
import os
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, hf_token, password):
        assert (hf_token, password) == ("hunter2-of-the-hub", "hunter2-of-the-base")
        super().__init__(nn.Linear(2, classes))
"""
SECRETS = {"HUB_TOKEN": "hunter2-of-the-hub", "BASE_PASSWORD": "hunter2-of-the-base"}
GIVEN = "model.layers.0.args.password"


@pytest.fixture
def package(attack, monkeypatch):
    attack.write("my_pkg/__init__.py", PACKAGE)
    monkeypatch.syspath_prepend(attack.folder)
    monkeypatch.setenv("HUB_TOKEN", SECRETS["HUB_TOKEN"])
    yield "my_pkg"
    sys.modules.pop("my_pkg", None)


@pytest.fixture
def asking(attack, config, package):
    """A config that holds one secret and takes another one from the environment."""
    args = {
        "classes": "classes",
        "hf_token": "${env:HUB_TOKEN}",
        "password": SECRETS["BASE_PASSWORD"],
    }
    layer = {"name": "net", "type": "import", "path": "my_pkg:Net", "args": args}
    attack.write("x.yaml", copy.deepcopy(config) | {"model": {"layers": [layer]}})
    return "x.yaml"


def leaks(folder):
    """Return the files below a folder that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    secrets = [secret.encode() for secret in SECRETS.values()]
    return [str(path) for path in files if any(s in path.read_bytes() for s in secrets)]


def test_a_run_writes_no_secret_anywhere(attack, asking, package):
    outcome = attack.harmless("train", asking, "--trust", package)
    assert outcome.code == 0
    assert leaks(attack.folder / "runs") == []
    assert (attack.folder / "runs/x/tensorboard").is_dir()
    assert not any(secret in outcome.out + outcome.err for secret in SECRETS.values())


def test_a_plan_writes_no_secret(attack, asking, package):
    outcome = attack.harmless("plan", asking, "--trust", package, "--write", "plans/long.yaml")
    assert outcome.code == 2
    (attack.folder / "plans").mkdir()
    outcome = attack.harmless("plan", asking, "--trust", package, "--write", "plans/long.yaml")
    assert outcome.code == 0
    assert leaks(attack.folder / "plans") == []


def test_a_run_goes_on_with_the_same_command(attack, asking, package):
    assert attack.harmless("train", asking, "--trust", package).code == 0
    more = ["-o", "train.epochs=3"]
    assert attack.harmless("train", asking, "--trust", package, *more).code == 0
    assert leaks(attack.folder / "runs") == []


def test_a_masked_secret_is_asked_for_and_one_of_the_environment_is_not(attack, asking, package):
    assert attack.harmless("train", asking, "--trust", package).code == 0
    line = attack.refused("eval", "runs/x", "--trust", package)
    assert f"{GIVEN}: was masked when this config was saved" in line
    given = f"{GIVEN}={SECRETS['BASE_PASSWORD']}"
    for verb in (["eval", "runs/x"], ["predict", "runs/x", "points.csv"]):
        assert attack.harmless(*verb, "--trust", package, "-o", given).code == 0
    with pytest.raises(ConfigError, match="was masked"):
        finetune.load_predictor("runs/x", trust=[package])
    predictor = finetune.load_predictor("runs/x", trust=[package], overrides=[given])
    assert len(predictor({"u": [1.0], "v": [2.0]})) == 1


def test_a_run_needs_its_variables_again(attack, asking, package, monkeypatch):
    assert attack.harmless("train", asking, "--trust", package).code == 0
    monkeypatch.delenv("HUB_TOKEN")
    given = f"{GIVEN}={SECRETS['BASE_PASSWORD']}"
    line = attack.refused("eval", "runs/x", "--trust", package, "-o", given)
    assert "the environment has no variable 'HUB_TOKEN'" in line
