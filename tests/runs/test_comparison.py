"""`finetune diff` finds what differs between two runs, and only that."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from finetune.errors import CheckpointError
from finetune.runs.comparison import compare_runs


@pytest.fixture
def pair(make_trainer, tmp_path):
    """Train two runs of digits with a frozen body; `changes` are those of the second one."""

    def pair(**changes):
        common = {"freeze": ["body"]}
        make_trainer("one", **common).fit()
        make_trainer("other", **(common | changes)).fit()
        return tmp_path / "one", tmp_path / "other"

    return pair


def test_a_run_does_not_differ_from_itself(pair):
    one, _ = pair()
    found = compare_runs(one, one)
    assert (found.config, found.data, found.metrics, found.environment) == ({}, {}, {}, {})
    assert found.weights.same_base
    assert all(
        block.equal == block.tensors and block.distance == 0 for block in found.weights.blocks
    )


def test_what_differs_is_named_and_the_distances_are_those_of_the_weights(pair):
    one, other = pair(optimizer={"type": "AdamW", "lr": 3e-2})
    found = compare_runs(one, other)
    assert found.config == {"optimizer.lr": (1e-2, 3e-2)}
    assert found.data == {}
    assert {tag.partition("/")[0] for tag in found.metrics} >= {"validation", "test"}
    (head,) = (block for block in found.weights.blocks if block.block == "head")
    first, second = (
        torch.cat([tensors["head.weight"].flatten(), tensors["head.bias"]]).double()
        for tensors in (load_file(chosen(run) / "weights.safetensors") for run in (one, other))
    )
    assert (head.tensors, head.equal) == (2, 0)
    assert math.isclose(head.distance, float((first - second).norm()), rel_tol=1e-9)
    assert math.isclose(head.relative, float((first - second).norm() / first.norm()), rel_tol=1e-9)


def test_other_samples_and_another_seed_are_told(pair):
    one, other = pair(seed=1)
    found = compare_runs(one, other)
    assert found.config == {"seed": (0, 1)}
    assert {"rows of train", "rows of validation", "rows of test"} <= found.data.keys()
    assert not any(name.startswith("contents of") for name in found.data)
    assert not found.weights.same_base


def test_runs_without_a_usable_checkpoint_are_compared_but_for_the_weights(pair):
    one, other = pair()
    (chosen(other) / "weights.safetensors").unlink()
    found = compare_runs(one, other)
    assert found.weights is None
    assert "weights.safetensors is missing" in found.no_weights
    with pytest.raises(CheckpointError, match="no run here"):
        compare_runs(one, one.parent)


def chosen(run):
    """Return the checkpoint that a run uses."""
    summary = json.loads((run / "summary.json").read_text())
    return run / "checkpoints" / f"step-{summary['best']['step']:08d}"
