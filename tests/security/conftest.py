"""What an attacker brings: a payload that leaves a canary, and a trained run to plant it in."""

import contextlib
import io
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

CONFIG = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 4},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {
        "source": {"type": "csv", "path": "points.csv"},
        "split": {"validation": 0.2, "test": 0.2, "stratify": True},
        "inputs": ["u", "v"],
        "target": "label",
        "transforms": [{"type": "stack"}],
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.3, "momentum": 0.9},
    "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
}


class Outcome(NamedTuple):
    """What a shell shows of a command."""

    code: int
    out: str
    err: str


def run(*arguments, stdin=""):
    """Run a verb in this process and return what a shell would show. A bug raises."""
    from finetune.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["finetune", *map(str, arguments)], io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
    finally:
        sys.argv, sys.stdin = before
    return Outcome(code, out.getvalue(), err.getvalue())


class Attack:
    """A place to attack, and the canary that any payload which runs would leave there."""

    def __init__(self, folder):
        self.folder = folder
        self.canary = folder / "canary"

    @property
    def command(self):
        """What a payload runs."""
        return f"touch {self.canary}"

    def write(self, name, content):
        """Write a file below the folder: bytes, text, or a mapping as YAML."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = yaml.safe_dump(content, sort_keys=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def files(self):
        """Return every file below the folder with its contents."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder): path.read_bytes() for path in files}

    @staticmethod
    def tree(folder):
        """Return every name below a folder with its kind, mode, time of change and contents."""
        found = {}
        for path in sorted(folder.rglob("*")):
            about = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(about.st_mode) else None
            found[path.relative_to(folder)] = about.st_mode, about.st_mtime_ns, content
        return found

    def refused(self, *arguments, stdin=""):
        """Run a verb that must be refused, in lines and hints; nothing run, nothing written.

        Returns the first line.
        """
        before = self.files()
        outcome = run(*arguments, stdin=stdin)
        assert outcome.code == 2, outcome
        line, *more = outcome.err.strip().splitlines()
        assert all(one.startswith("    ") or ": " in one for one in more), outcome.err
        assert len(outcome.err) < 2000
        assert self.files() == before
        assert not self.canary.exists()
        return line

    def harmless(self, *arguments, stdin=""):
        """Run a verb that may refuse or pass over what is planted, but must not run it."""
        outcome = run(*arguments, stdin=stdin)
        assert outcome.code in (0, 2), outcome
        assert not self.canary.exists()
        return outcome


def points():
    """Two clouds of points as a csv file."""
    random = np.random.default_rng(0)
    rows = ["u,v,label"]
    for number in range(40):
        side, label = (2, "right") if number % 2 else (-2, "left")
        rows.append(f"{random.normal(side):.4f},{random.normal():.4f},{label}")
    return "\n".join(rows) + "\n"


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """A scratch folder with honest data in it, which is the place verbs run in."""
    monkeypatch.chdir(tmp_path)
    attack = Attack(tmp_path)
    attack.write("points.csv", points())
    return attack


@pytest.fixture
def config():
    """A config of a run that is honest."""
    return CONFIG


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run, with the data beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        attack = Attack(folder)
        attack.write("points.csv", points())
        attack.write("honest.yaml", CONFIG)
        assert run("train", "honest.yaml").code == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def planted(attack, trained):
    """A copy of the finished run, to plant something in."""
    shutil.copytree(trained, attack.folder, dirs_exist_ok=True)
    return attack.folder / "runs" / "honest"
