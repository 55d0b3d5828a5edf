"""The verbs as a user meets them: called in this process, in a scratch folder."""

import sys

import numpy as np
import pytest
import yaml

CONFIG = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 8},
            {"name": "relu", "type": "ReLU"},
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
    "optimizer": {"type": "SGD", "lr": 0.3},
    "train": {"epochs": 8, "batch_size": 8},
}

NETWORK = '''
"""A network whose depth depends on its input, and which talks while it is imported and run."""
from pathlib import Path

import torch
from torch import nn

Path("imported").touch()
print("noise of the import")


class Looping(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.again = nn.Linear(2, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        print("noise of the forward pass")
        x = self.first(x)
        for _ in range(1 + int(x.detach().abs().sum()) % 3):
            x = torch.tanh(self.again(x))
        return self.head(x)
'''


@pytest.fixture
def finetune(tmp_path, monkeypatch, command_line):
    """Run a verb in the scratch folder and return what a shell would show."""
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture
def write(tmp_path):
    """Write a file below the scratch folder."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = yaml.safe_dump(content, sort_keys=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def config():
    """What `points.yaml` holds."""
    return CONFIG


@pytest.fixture
def points(write):
    """Two clouds of points, and a config that tells them apart: `points.yaml`."""
    random = np.random.default_rng(0)
    rows = ["u,v,label"]
    for number in range(40):
        side, label = (2, "right") if number % 2 else (-2, "left")
        rows.append(f"{random.normal(side):.4f},{random.normal():.4f},{label}")
    write("points.csv", "\n".join(rows) + "\n")
    return write("points.yaml", CONFIG)


@pytest.fixture
def network(write, tmp_path, monkeypatch):
    """A package of the user's, and `looping.yaml`, which asks for its network."""
    write("looping_package/__init__.py", NETWORK)
    layer = {"name": "net", "type": "import", "path": "looping_package:Looping"}
    layer["args"] = {"classes": "classes"}
    write("looping.yaml", CONFIG | {"model": {"layers": [layer]}})
    monkeypatch.syspath_prepend(tmp_path)
    yield "looping_package"
    sys.modules.pop("looping_package", None)
