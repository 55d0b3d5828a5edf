"""Weights of a run with other classes or categories fit in all shapes, and are told."""

import random

import pytest
import yaml

from finetune.config.loader import load_config
from finetune.train.build import build_parts, lints_of

MODEL = [
    {"name": "table", "type": "Embedding", "num_embeddings": "categories", "embedding_dim": 4},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


@pytest.fixture
def write(tmp_path):
    """Write a config over a table of one category and one label; return its path."""

    def write(name, kinds, labels, model=MODEL, weights=None):
        draw = random.Random(0)
        rows = [f"{draw.choice(kinds)},{draw.choice(labels)}" for _ in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["kind,y", *rows]) + "\n")
        config = {
            "model": {"layers": model} | ({} if weights is None else {"weights": weights}),
            "data": {
                "source": {"type": "csv", "path": f"{name}.csv"},
                "inputs": ["kind"],
                "target": "y",
                "transforms": [{"type": "categories", "columns": ["kind"], "as": "index"}],
            },
            "task": {"type": "classification"},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "train": {"steps": 2, "batch_size": 8},
            "tracking": [],
            "cache": "off",
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / f"{name}.yaml"

    return write


@pytest.fixture
def notes():
    """Return what is told of the weights that a config loads."""

    def told(path):
        config = load_config(path)
        lints = lints_of(config, build_parts(config))["weights"]
        return [lint.message for lint in lints if "was trained" in lint.message]

    return told


KINDS, LABELS = ["red", "green", "blue"], ["a", "b"]


@pytest.fixture(params=["exported", "checkpoint"])
def weights(request, write, command_line, tmp_path):
    """Weights of a run on `KINDS` and `LABELS`, as their two files have them."""
    config = write("first", KINDS, LABELS)
    assert not command_line("train", config, "--run", tmp_path / "run", "-q").code
    if request.param == "checkpoint":
        (file,) = (tmp_path / "run" / "checkpoints").glob("*/weights.safetensors")
        return str(file)
    out = tmp_path / "out"
    arguments = ("--format", "safetensors", "--out", out, "--check", 0)
    assert not command_line("export", tmp_path / "run", *arguments).code
    return str(out / "model.safetensors")


def test_weights_for_other_classes_or_categories_are_told(weights, write, notes):
    assert notes(write("same", KINDS[::-1], LABELS, weights={"path": weights})) == []
    (note,) = notes(write("labels", KINDS, ["b", "c"], weights={"path": weights}))
    assert note.endswith("other classes: output 1 stood for 'a' and stands for 'b' here")
    (note,) = notes(write("kinds", ["red", "green", "grey"], LABELS, weights={"path": weights}))
    assert note.endswith(
        "other categories of 'kind': place 1 stood for 'blue' and stands for 'green' here"
    )
    # a new first layer has learnt of no category
    model = [MODEL[0] | {"name": "new"}, MODEL[1]]
    loose = {"path": weights, "strict": False}
    kinds = ["red", "green", "grey"]
    assert notes(write("first layer", kinds, LABELS, model=model, weights=loose)) == []
    # a new last layer has learnt of no class
    model = [MODEL[0], MODEL[1] | {"name": "new"}]
    loose = {"path": weights, "strict": False}
    assert notes(write("head", KINDS, ["b", "c"], model=model, weights=loose)) == []
