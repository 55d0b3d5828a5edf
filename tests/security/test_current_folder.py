"""Nothing that lies in the current folder or a run folder is ever imported."""

import ast
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMANDS = ["finetune", "python -m finetune"]

# What the project imports, what its libraries and its children import, and what Python itself
# imports as it starts; a decoy of `finetune` runs under `python -m finetune` by what that means.
DECOYS = [
    *("tensorboard", "numpy", "torch", "torchvision", "torchmetrics", "transformers", "timm"),
    *("yaml", "pydantic", "typer", "click", "rich", "safetensors", "tokenizers", "datasets", "PIL"),
    *("sitecustomize", "usercustomize", "absl", "werkzeug", "google", "markdown", "grpc", "triton"),
    *sorted(sys.stdlib_module_names - {"sys", "__main__"}),
]
RANDOM = {"type": "import", "path": "slow_steps:jitter", "random": True}
CONFIG = {
    "model": {"layers": [{"name": "head", "type": "Linear", "out_features": 3}]},
    "data": {
        "source": {"type": "random", "samples": 16, "features": 4, "targets": 3},
        "transforms": [RANDOM],
        "workers": 2,
    },
    "task": {"type": "regression"},
    "optimizer": {"type": "SGD", "lr": 0.05},
    "train": {"steps": 3, "batch_size": 8},
}


class Strangers:
    """A stranger's folder full of modules, each of which leaves its name behind if it runs."""

    def __init__(self, place):
        self.place, self.ran = place, place.parent / "ran"
        (place / "run").mkdir(parents=True)
        (place / "runs").mkdir()
        (place / "c.yaml").write_text(yaml.safe_dump(CONFIG))
        code = f"with open({str(self.ran)!r}, 'a') as file: file.write(__name__ + '\\n')\n"
        for folder in (place, place / "run"):
            for name in DECOYS:
                (folder / f"{name}.py").write_text(f"{code}raise SystemExit(9)\n")
        script = place.parent / "bin" / "finetune"
        script.parent.mkdir()
        script.write_text("from finetune.__main__ import run\nrun()\n")
        self.commands = {
            "finetune": [sys.executable, str(script)],
            "python -m finetune": [sys.executable, "-m", "finetune"],
        }
        self.more_paths = []

    def environment(self, **more):
        paths = [*self.more_paths, str(ROOT), str(ROOT / "tests" / "torture")]
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
        return clean | {"PYTHONPATH": os.pathsep.join(paths)} | more

    def call(self, command, *arguments, **more):
        """Run a verb in the folder; no module of it may have run."""
        done = subprocess.run(
            [*self.commands[command], *arguments],
            cwd=self.place, env=self.environment(**more), check=False, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert not self.ran.exists(), self.ran.read_text()
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def strangers(tmp_path):
    return Strangers(tmp_path / "place")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_verb_imports_nothing_of_the_current_folder(strangers, command):
    assert "valid" in strangers.call(command, "validate", "c.yaml").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_decoys_would_run_if_they_were_looked_for(strangers, command):
    strangers.more_paths = [str(strangers.place)]
    (strangers.place / "typing.py").unlink()
    with pytest.raises(AssertionError):
        strangers.call(command, "validate", "c.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_verb_nor_a_process_of_the_loader_imports_them(strangers, command):
    trust = ["--trust", "slow_steps"]
    trained = strangers.call(command, "train", "c.yaml", "--run", "run/one", *trust)
    assert trained.returncode == 0, trained.stderr
    for arguments in (
        ["plan", "c.yaml", *trust],
        ["inspect", "c.yaml", *trust],
        ["eval", "run/one", "--split", "train", *trust],
        ["doctor", "run/one"],
        ["cache", "ls"],
        ["runs", "run"],
        ["report", "run/one", "--out", "page.html"],
        ["certify", "run/one", "--out", "certificate.json", *trust],
        ["export", "run/one", "--format", "safetensors", "--out", "exported", *trust],
    ):
        done = strangers.call(command, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_compiler_s_processes_do_not_import_them(strangers):
    changes = ["-o", "train.compile=true", "-o", "train.device=cpu", "-o", "train.steps=2"]
    strangers.call("python -m finetune", "train", "c.yaml", "--run", "run/one",
                   "--trust", "slow_steps", *changes)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_tensorboard_does_not_import_them(strangers, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*strangers.commands[command], "tensorboard", "runs", "--port", str(port)],
        cwd=strangers.place, env=strangers.environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            assert server.poll() is None, strangers.ran.exists() and strangers.ran.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("it did not listen")
    finally:
        server.terminate()
        server.wait(timeout=180)
    assert not strangers.ran.exists()


CHILD = """
from finetune.__main__ import leave_out_current_folder
leave_out_current_folder()
import {start}
"""
STARTS = {
    "spawn": "multiprocessing as m; c = m.get_context('spawn').Process(target=print); "
    "c.start(); c.join(); assert c.exitcode == 0",
    "forkserver": "multiprocessing as m; c = m.get_context('forkserver').Process(target=print); "
    "c.start(); c.join(); assert c.exitcode == 0",
    "another Python": "subprocess, sys; subprocess.run([sys.executable, '-m', 'json.tool', "
    "'--help'], check=True)",
    "another Python's code": "subprocess, sys; subprocess.run([sys.executable, '-c', "
    "'import json, typing'], check=True)",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_child_however_it_is_started_does_not_import_them(strangers, start):
    strangers.commands["child"] = [sys.executable, "-c", CHILD.format(start=start)]
    done = strangers.call("child")
    assert done.returncode == 0, done.stderr


SHOWN = """
from finetune.__main__ import leave_out_current_folder
leave_out_current_folder()
import os, sys
print(os.getcwd() in sys.path, "" in sys.path, os.environ.get("PYTHONPATH"))
"""


@pytest.mark.parametrize(
    ("paths", "stays"),
    [
        (f"{ROOT}", False),
        (f"{ROOT}:", False),
        (f":{ROOT}", False),
        (f"{ROOT}::/nowhere", False),
        (f".:{ROOT}", True),
        (f"{ROOT}:.", True),
        (f":{ROOT}:.", True),
        (f"{ROOT}:PLACE", True),
    ],
)
def test_an_entry_that_nobody_has_written_out_goes_and_one_that_is_stays(tmp_path, paths, stays):
    paths = paths.replace("PLACE", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", SHOWN],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    kept = os.pathsep.join(path for path in paths.split(os.pathsep) if path)
    assert done.stdout.split() == [str(stays), "False", kept]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_trusted_package_of_the_current_folder_is_not_found_by_either_command(tmp_path, command):
    place = Strangers(tmp_path / "place")
    (place.place / "my_pkg.py").write_text("raise SystemExit(9)\n")
    config = CONFIG | {"data": CONFIG["data"] | {"source": {"type": "import", "path": "my_pkg:x"}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = place.call(command, "plan", "../c.yaml", "--trust", "my_pkg", "--trust", "slow_steps")
    assert done.returncode == 2
    assert "no module named 'my_pkg'" in done.stderr
    assert "the current folder is not searched" in done.stderr


STARTERS = re.compile(
    r"subprocess|multiprocessing|os\.(exec|fork|spawn|posix_spawn|system|popen)|DataLoader$|"
    r"Process(Pool)?(Executor)?$|Popen"
)


def test_every_place_that_starts_a_process_is_known_and_tested_above():
    places = set()
    for path in sorted((ROOT / "finetune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=func) if STARTERS.search(ast.unparse(func)):
                    places.add((path.relative_to(ROOT).as_posix(), ast.unparse(func)))
    assert places == {
        ("finetune/cli/running.py", "os.execv"),
        ("finetune/data/loading/workers.py", "DataLoader"),
        ("finetune/sweep/trial_process.py", "subprocess.Popen"),
    }


def test_a_script_starts_no_python_that_looks_in_the_current_folder():
    started = re.compile(r"python\"? -|candidate\"? -")
    lines = [
        line
        for script in ("bootstrap", "demo", "test")
        for line in (ROOT / "scripts" / script).read_text().splitlines()
        if started.search(line) and not line.lstrip().startswith("#")
    ]
    assert len(lines) >= 4
    assert [line for line in lines if not re.search(r" -[IP] |--version", line)] == []
