"""Lies about averages that the digests of a checkpoint vouch for: none of them is loaded."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
forged = importlib.import_module("forged_runs")
sys.path.pop(0)

FILE = "unaveraged.safetensors"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    train = forged.RUN["train"] | {"average": {"decay": 0.5}}
    schedule = {"type": "plateau", "patience": 1}
    return forged.Forgery(tmp_path_factory.mktemp("averaged"), train=train, schedule=schedule)


def poked(tensors):
    tensors["mid.weight"].view(-1)[0] = math.nan


LIES = {
    "a tensor that never trains": lambda t: t.update({"body.weight": torch.ones(3, 2)}),
    "rows that never train": lambda t: t.update({"head.weight[0:1]": torch.ones(1, 3)}),
    "the whole of a parameter cut into rows": lambda t: t.update({"head.weight": torch.ones(3, 3)}),
    "a buffer": lambda t: t.update({"moving.running_mean": torch.ones(3)}),
    "a lacking tensor": lambda t: t.pop("mid.weight"),
    "another shape": lambda t: t.update({"mid.bias": t["mid.bias"][None]}),
    "another type": lambda t: t.update({"mid.bias": t["mid.bias"].double()}),
    "NaN": poked,
}


def passed_over(run):
    trainer = run.taken_up()
    (line,) = run.listener.lines
    assert trainer.progress.step == run.last - 1
    assert line.startswith(f"{run.newest}: ")
    assert line.endswith("; passed over")
    return line


@pytest.mark.parametrize("name", LIES)
def test_weights_as_trained_that_cannot_be_are_passed_over(averaged, name):
    averaged.restore_newest()
    tensors = load_file(averaged.newest / FILE)
    LIES[name](tensors)
    save_file({n: t.clone() for n, t in tensors.items()}, averaged.newest / FILE)
    forged.resealed(averaged.newest)
    passed_over(averaged)


def test_a_checkpoint_without_its_averages_is_passed_over(averaged):
    averaged.restore_newest()
    (averaged.newest / FILE).unlink()
    path = averaged.newest / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][FILE]
    path.write_text(json.dumps(manifest))
    forged.resealed(averaged.newest)
    assert "averages of other parameters" in passed_over(averaged)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_falls", -1),
        ("rate_falls", 99),
        ("rate_falls", "1"),
        ("rate", {"value": 1.0, "step": 99, "stale": 0, "is_over": False}),
        ("rate", {"value": 1.0, "step": 2, "stale": 1, "is_over": True}),
        ("rate", {"value": 1.0, "step": 2, "stale": -1, "is_over": False}),
    ],
)
def test_a_rate_that_cannot_have_fallen_so_is_passed_over(averaged, field, value):
    averaged.restore_newest()
    path = averaged.newest / "progress.json"
    document = json.loads(path.read_text())
    document["progress"][field] = value
    path.write_text(json.dumps(document))
    forged.resealed(averaged.newest)
    passed_over(averaged)


def test_an_average_without_a_key_for_it_is_passed_over(tmp_path):
    run = forged.Forgery(tmp_path)
    weights = load_file(run.newest / "weights.safetensors")
    save_file({"mid.weight": weights["mid.weight"]}, run.newest / FILE)
    path = run.newest / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"][FILE] = {"size_bytes": 0, "blake2b": ""}
    path.write_text(json.dumps(manifest))
    forged.resealed(run.newest)
    assert "averages of other parameters" in passed_over(run)


def test_a_sound_run_with_averages_goes_on_without_a_line(averaged):
    averaged.restore()
    assert (averaged.taken_up().progress.step, averaged.listener.lines) == (averaged.last, [])
    *_, diagnosis = averaged.reads_or_tells()
    assert diagnosis.is_sound
