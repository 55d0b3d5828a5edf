"""Runs in processes of their own, so that they can be killed; small ones to damage and compare."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

CONFIG = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "drop", "type": "Dropout", "p": 0.2},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 60, "features": 4, "targets": 3},
        "split": {"validation": 0.25, "test": 0.1},
    },
    "task": {"type": "regression"},
    "optimizer": {"type": "AdamW", "lr": 0.01},
    "train": {
        "steps": 12,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_every": {"steps": 2},
        "checkpoint": {"every": {"steps": 1}},
    },
}


@pytest.fixture
def written(tmp_path):
    """Write a config, its sections changed, and return its path."""

    def write(name="run.yaml", **changes):
        path = tmp_path / name
        sections = {
            key: {**CONFIG.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        path.write_text(yaml.safe_dump(CONFIG | sections))
        return path

    return write


@pytest.fixture
def stops_of(tmp_path):
    """Stop the run of a config at every step, in forks, and return what `forked_stops.py` saw."""

    def seen(config):
        paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
        done = subprocess.run(
            [sys.executable, HERE / "forked_stops.py", config, tmp_path],
            env=os.environ | {"PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return seen


@pytest.fixture
def started(tmp_path):
    """Start `finetune` in a session of its own; what still runs at the end is killed."""
    processes = []

    def start(*arguments, **environment):
        paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ
            | {"PYTHONPATH": paths, "FINETUNE_CACHE": str(tmp_path / "cache")}
            | {key: str(value) for key, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def runs():
    """Return the module of small runs."""
    place = HERE / "small_runs.py"
    spec = importlib.util.spec_from_file_location("small_runs", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def unbroken(runs, tmp_path_factory):
    """A folder with a finished run, and what it has ended with."""
    trainer = runs.build(tmp_path_factory.mktemp("unbroken") / "run")
    trainer.fit()
    return trainer.folder.path, runs.end_of(trainer)
