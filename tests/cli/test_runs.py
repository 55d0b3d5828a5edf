"""`finetune runs` shows and removes runs; a run folder may be renamed, moved and copied."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.runs.lock import locked


@pytest.fixture
def trained(finetune, points):
    """Two seeds of the same config, and another rate."""
    for name, *changes in (
        ("one",),
        ("two", "-o", "seed=1"),
        ("slow", "-o", "optimizer.lr=1e-6"),
    ):
        ended = finetune("train", points, "--run", f"runs/{name}", *changes)
        assert ended.code == 0, ended.err
    return finetune


@pytest.mark.slow
def test_runs_as_a_table_and_as_json(trained):
    shown = trained("runs")
    assert shown.code == 0
    *lines, note = shown.out.splitlines()
    assert "validation/accuracy" in lines[0]
    assert "2 seeds" in lines[2]
    assert "±" in lines[2]
    assert [line.split()[0] for line in lines[3:]] in (
        ["one", "two", "slow"],
        ["two", "one", "slow"],
    )
    assert "optimizer.lr=1e-06" in lines[-1]
    # Another seed draws other validation samples.
    assert note.startswith("validated on different samples")
    document = json.loads(trained("runs", "runs", "--json").out)
    best, slow = document["groups"]
    assert {run["name"] for run in best["runs"]} == {"one", "two"}
    summary = json.loads(Path("runs/slow/summary.json").read_text())
    assert slow["runs"][0]["value"] == slow["mean"] == summary["best"]["value"]
    assert slow["runs"][0]["config"]["optimizer.lr"] == 1e-6


def test_a_run_that_fails_says_why(finetune, points):
    ended = finetune("train", points, "--run", "runs/wild", "-o", "optimizer.lr=1e30")
    assert ended.code == 3
    (run,) = json.loads(finetune("runs", "--json").out)["groups"][0]["runs"]
    assert run["status"] == "failed"
    assert run["reason"] in ended.err


@pytest.mark.slow
def test_a_run_is_removed_and_other_files_stay(trained):
    Path("runs/one/thesis.tex").write_text("mine")
    refused = trained("runs", "--rm", "runs/one")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert trained("runs", "--rm", "runs/one", "--yes").code == 0
    assert [path.name for path in Path("runs/one").iterdir()] == ["thesis.tex"]
    assert trained("runs", "--rm", "runs/two", "--yes").code == 0
    assert not Path("runs/two").exists()
    assert trained("runs", "--rm", "runs/two", "--yes").code == 2
    with locked(Path("runs/slow")):
        held = trained("runs", "--rm", "runs/slow", "--yes")
    assert "in use by process" in held.err
    assert Path("runs/slow/summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("move", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_a_run_is_used_from_its_new_place(finetune, points, move):
    unbroken = finetune("train", points, "--run", "runs/whole", "-o", "train.epochs=10")
    assert unbroken.code == 0
    assert finetune("train", points, "--run", "runs/old").code == 0
    before = finetune("eval", "runs/old", "--json").out
    predicted = finetune("predict", "runs/old", "points.csv").out
    new = Path("elsewhere/deeper/a new name")
    new.parent.mkdir(parents=True)
    move("runs/old", new)
    found = json.loads(finetune("eval", new, "--json").out)
    assert found["metrics"] == json.loads(before)["metrics"]
    assert finetune("predict", new, "points.csv").out == predicted
    assert finetune("train", points, "--run", new, "-o", "train.epochs=10").code == 0
    whole = json.loads(Path("runs/whole/summary.json").read_text())
    went_on = json.loads((new / "summary.json").read_text())
    assert went_on["metrics"] == whole["metrics"]
    assert finetune("doctor", new).code == 0
    (group,) = json.loads(finetune("runs", "elsewhere", "--json").out)["groups"]
    assert [run["name"] for run in group["runs"]] == ["deeper/a new name"]


@pytest.mark.slow
def test_diff_as_tables_and_as_json(trained):
    shown = trained("diff", "runs/one", "runs/slow")
    assert shown.code == 0
    assert "optimizer.lr" in shown.out
    assert "data: equal" in shown.out
    document = json.loads(trained("diff", "runs/one", "runs/slow", "--json").out)
    assert document["config"] == {"optimizer.lr": [0.3, 1e-6]}
    assert {block["block"] for block in document["weights"]["blocks"]} == {"body", "head"}
    assert trained("diff", "runs/one", "runs").code == 2
