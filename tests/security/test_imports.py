"""A config names code; only the packages of `--trust` may be named, and only what is their own."""

import copy
import sys

import pytest

import finetune
from finetune.errors import TrustError

STRANGERS = [
    "os:system",
    "posix:system",
    "subprocess:run",
    "builtins:eval",
    "builtins:exec",
    "torch.os:system",
    "torch:os.system",
    "torch.serialization:os.system",
    "logging:os.system",
    "pdb:Pdb._getval",
    "importlib:import_module",
    "runpy:run_path",
    "my_pkg:system",
    "my_pkg:os.system",
    "my_pkg:Tools.os.system",
    "my_pkg:Tools.run",
    "my_pkg:ready",
    "my_pkg:disguised",
    "my_pkg:renamed",
    "my_pkg.tools:system",
]


def at(place, config, path, args):
    """Return the config with `type: import` in one of the places that know it."""
    config = copy.deepcopy(config)
    node = {"type": "import", "path": path, "args": args}
    match place:
        case "layer":
            config["model"]["layers"][0] = {"name": "net", **node}
        case "source":
            config["data"] |= {"source": node}
        case "transform":
            config["data"]["transforms"].append(node)
        case "loss":
            config["task"]["losses"] = [node]
        case "task":
            config["task"] = node
    return config


PLACES = ["layer", "source", "transform", "loss", "task"]


@pytest.fixture
def package(attack, monkeypatch):
    """A package that the user trusts, and that has strangers' functions lying about in it."""
    attack.write(
        "my_pkg/__init__.py",
        "import functools, os, types\n"
        "from os import system, popen\n"
        "ready = functools.partial(system)\n"
        "class Tools:\n"
        "    os = os\n"
        "    run = staticmethod(system)\n"
        "@functools.wraps(system)\n"
        "def disguised(command): return system(command)\n"
        "disguised.__module__ = __name__\n"
        "renamed = types.FunctionType(popen.__code__, popen.__globals__)\n"
        "renamed.__module__ = __name__\n"
        "def number(**args): return 3\n"
        "class NoModule:\n"
        "    def __init__(self, command): system(command)\n",
    )
    attack.write("my_pkg/tools.py", "import os, sys\nsys.modules[__name__] = os\n")
    monkeypatch.syspath_prepend(attack.folder)
    # bytecode would be a file that was written
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "my_pkg"
    for name in [name for name in sys.modules if name.startswith("my_pkg")]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", STRANGERS)
def test_no_stranger_s_function_is_called_from_any_place_of_a_config(
    attack, config, package, place, path
):
    attack.write("x.yaml", at(place, config, path, {"command": attack.command}))
    line = attack.refused("train", "x.yaml", "--trust", package, "--trust", "torch")
    assert line.startswith("x.yaml:")


@pytest.mark.parametrize("verb", ["plan", "train", "inspect"])
def test_nothing_is_imported_without_trust(attack, config, package, verb):
    attack.write("x.yaml", at("layer", config, f"{package}:number", {}))
    assert "which is not trusted" in attack.refused(verb, "x.yaml")
    assert package not in sys.modules


def test_a_config_cannot_trust_anything_itself(attack, config, package):
    for key in ("trust", "allow_imports"):
        attack.write("x.yaml", {key: [package]} | at("layer", config, f"{package}:number", {}))
        assert f"{key}: unknown key" in attack.refused("train", "x.yaml")
        assert f"-o {key}: unknown key" in attack.refused("train", "x.yaml", "-o", f"{key}=[a]")


@pytest.mark.parametrize("name", ["os", "builtins", "subprocess", "*", "", "../my_pkg"])
def test_not_everything_can_be_trusted(attack, config, name):
    attack.write("x.yaml", config)
    assert attack.refused("train", "x.yaml", "--trust", name).startswith("--trust: ")


@pytest.mark.parametrize("place", PLACES)
def test_what_a_trusted_function_gives_must_be_of_the_right_kind(attack, config, package, place):
    attack.write("x.yaml", at(place, config, f"{package}:number", {}))
    assert attack.refused("train", "x.yaml", "--trust", package).startswith("x.yaml:")


def test_a_class_that_is_no_module_is_not_even_made(attack, config, package):
    args = {"command": attack.command}
    attack.write("x.yaml", at("layer", config, f"{package}:NoModule", args))
    line = attack.refused("train", "x.yaml", "--trust", package)
    assert "is a class, but no nn.Module" in line


@pytest.mark.parametrize("place", PLACES)
def test_arguments_of_a_trusted_function_are_checked_before_the_call(
    attack, config, package, place
):
    attack.write("x.yaml", at(place, config, f"{package}:NoModule", {"other": attack.command}))
    attack.refused("train", "x.yaml", "--trust", package)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_folder_brings_no_trust_with_it(attack, planted, config, package, place):
    attack.write("runs/honest/config.yaml", at(place, config, f"{package}:number", {}))
    attack.refused("eval", planted)
    if place in ("layer", "loss", "task"):
        attack.refused("predict", planted, "points.csv")
        with pytest.raises(TrustError):
            finetune.load_predictor(planted)
    else:
        attack.harmless("predict", planted, "points.csv")
    assert package not in sys.modules
