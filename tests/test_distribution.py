"""What is given away: a wheel and a source archive hold all of the package, and run from there."""

import importlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})"


def files_of_the_package():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "finetune"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in listed.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both from a copy, so that nothing is left in the repository."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in [*files_of_the_package(), "pyproject.toml", "README.md", "LICENSE"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", BUILD.format(str(out))]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()


@pytest.mark.slow
def test_the_source_archive_holds_the_package(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {*files_of_the_package(), "pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_the_unpacked_wheel_runs_from_an_empty_folder(built, tmp_path, monkeypatch):
    (wheel,) = built.glob("*.whl")
    place, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    monkeypatch.setenv("PYTHONPATH", str(place))

    def said(*arguments):
        command = [sys.executable, "-P", "-m", "finetune", *arguments]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (metadata,) = place.glob("*.dist-info")
    distribution = PathDistribution(metadata)
    assert said("--version") == f"finetune {distribution.version}\n"
    # these read files that are no modules: the catalogue of classes and the templates
    assert "Conv2d" in said("show", "Conv2d")
    said("init", "--template", "regression", "--out", "new.yaml")
    assert said("validate", "new.yaml")
    (script,) = distribution.entry_points
    assert (script.name, script.value) == ("finetune", "finetune.__main__:run")
    assert {"text", "vision", "data", "audio", "export", "serve", "sweep"} <= set(
        distribution.metadata.get_all("Provides-Extra")
    )


def test_every_extra_has_a_use_that_shows_that_it_works(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    check = importlib.import_module("check_extras")
    assert {*check.USES} == {check.NONE, *check.single_extras()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["optional-dependencies"]) == {*check.single_extras(), *check.COLLECTIONS}


@pytest.mark.parametrize(
    ("stderr", "code", "named"),
    [
        ("note\nneeds 'onnx'\n    pip install 'finetune[export]'\n", 2, "export"),
        ("Traceback (most recent call last):\n  x\n    pip install 'finetune[export]'\n", 2, ""),
        ("needs 'onnx'\n    pip install 'finetune[export]'\n", 1, ""),
        ("needs 'onnx'\n    pip install onnx\n", 2, ""),
    ],
    ids=["one line", "a traceback", "a bug", "no extra"],
)
def test_only_one_line_that_names_the_extra_is_a_refusal(stderr, code, named, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    check = importlib.import_module("check_extras")
    assert check._refusal("finetune export", code, stderr).names == named
