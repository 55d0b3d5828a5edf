"""A small run on scikit-learn's digits, built from plain data."""

import copy

import pytest

from finetune.config.run import RunConfig
from finetune.train.setup import build_trainer

BASE = {
    "seed": 0,
    "model": {
        "layers": [
            {"name": "flat", "type": "Flatten"},
            {"name": "body", "type": "Linear", "out_features": 16},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "relu", "type": "ReLU"},
            {"name": "drop", "type": "Dropout", "p": 0.2},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {
        "source": {"type": "sklearn", "name": "digits"},
        "split": {"validation": 0.1, "test": 0.7, "stratify": True},
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
    "train": {"steps": 20, "batch_size": 32, "evaluate_every": {"steps": 10}},
}


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if nested else value
    return result


@pytest.fixture
def make_config():
    def make(**changes):
        return RunConfig.model_validate(merged(copy.deepcopy(BASE), changes))

    return make


@pytest.fixture
def make_trainer(make_config, tmp_path):
    """Build a trainer; `run` names its folder below `tmp_path`."""

    def make(run="run", fresh=False, **changes):
        return build_trainer(make_config(**changes), tmp_path / run, fresh=fresh)

    return make
