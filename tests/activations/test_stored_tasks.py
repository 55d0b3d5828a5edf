"""Tasks of several embeddings or positions: stored and run whole they end with the same bits."""

import numpy as np
import pytest

ENCODER = {
    "name": "first", "type": "sequential", "inputs": ["a"],
    "layers": [{"type": "Linear", "out_features": 16}, {"type": "Tanh"}],
}  # fmt: skip
HEAD = {"name": "head", "type": "Linear", "out_features": 4}


def sides(names):
    """Layers that encode several columns by one encoder and one head, side by side."""
    layers = [ENCODER, HEAD]
    for name in names[1:]:
        layers += [
            {"name": f"first_{name}", "type": "shared", "layer": "first", "inputs": [name]},
            {"name": f"head_{name}", "type": "shared", "layer": "head"},
        ]
    heads = ["head", *(f"head_{name}" for name in names[1:])]
    return [*layers, {"name": "both", "type": "stack", "inputs": heads}]


@pytest.fixture
def config(small_config, tmp_path):
    """Return a function that makes the config of a run on pairs or triplets of vectors."""

    def make(names, target, task, cache):
        draw = np.random.default_rng(0)
        columns = {name: draw.normal(size=(48, 8)).astype(np.float32) for name in names}
        np.savez(tmp_path / "data.npz", **columns, score=draw.uniform(0, 1, 48))
        data = {"source": {"type": "arrays", "path": str(tmp_path / "data.npz")}}
        data |= {"inputs": list(names), "split": {"validation": 0.25}}
        return small_config(
            model={"layers": sides(names)},
            data=data | ({"target": target} if target else {}),
            task={"type": "similarity"} | task,
            freeze=["first"],
            train={"epochs": 3, "batch_size": 8, "checkpoint": {"best": None}},
            cache=cache,
        )

    return make


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("names", "target", "task"),
    [
        ("ab", "score", {"metrics": ["spearman", "pearson"]}),
        ("ab", None, {"compares": "pairs", "metrics": ["mrr", "recall@3"]}),
        ("abc", None, {"compares": "triplets", "losses": {"type": "triplet"}}),
    ],
    ids=["scores", "pairs", "triplets"],
)
def test_a_frozen_encoder_is_stored_and_changes_no_bit(runs, config, tmp_path, names, target, task):
    stored, said = runs.trained(config(names, target, task, "auto"), tmp_path / "stored")
    whole, _ = runs.trained(config(names, target, task, "off"), tmp_path / "whole")
    assert stored.cache.statistics.answered > 0, said
    runs.assert_same_run(stored, whole)


TWO_TOWERS = [
    {"name": "trained", "type": "Linear", "out_features": 2, "inputs": ["x"]},
    {"name": "first", "type": "Linear", "out_features": 16, "inputs": ["x"]},
    {"name": "deep", "type": "Linear", "out_features": 8},
    {"name": "last", "type": "Linear", "out_features": 2},
    {"name": "both", "type": "add", "inputs": ["trained", "last"]},
]


@pytest.mark.usefixtures("always")
def test_inputs_of_an_answered_last_layer_are_written_as_without_a_store(
    runs, small_config, tmp_path
):
    draw = np.random.default_rng(0)
    arrays = {"x": draw.normal(size=(48, 8)).astype(np.float32), "y": draw.integers(0, 2, 48)}
    np.savez(tmp_path / "data.npz", **arrays)
    rows = {}
    for cache in ("auto", "off"):
        config = small_config(
            model={"layers": TWO_TOWERS},
            data={
                "source": {"type": "arrays", "path": str(tmp_path / "data.npz")},
                "inputs": ["x"],
                "target": "y",
                "split": {"validation": 0.25},
            },
            task={"type": "classification"},
            freeze=["first", "deep", "last"],
            train={"epochs": 2, "batch_size": 8},
            tracking={"to": ["tensorboard"], "projector": True},
            cache=cache,
        )
        trainer, said = runs.trained(config, tmp_path / cache)
        assert (trainer.cache.statistics.answered > 0) == (cache == "auto"), said
        rows[cache] = np.loadtxt(tmp_path / cache / "tensorboard" / "embedding.tsv")
    assert rows["off"].shape == (12, 8)
    assert len(np.unique(rows["off"])) > 12
    np.testing.assert_array_equal(rows["auto"], rows["off"])
