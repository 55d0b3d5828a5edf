"""Runs are found, read, sorted, filtered and grouped from their small files alone."""

import json
import os
import shutil

import pytest
import yaml

from finetune.errors import FinetuneError
from finetune.runs.listing import chosen_runs, find_runs, sorted_groups
from finetune.runs.lock import locked
from finetune.runs.run_record import read_run

FIGURES = {
    "main": "validation/accuracy",
    "better": {"loss": "lower", "accuracy": "higher", "own": None},
}


@pytest.fixture
def plant(tmp_path):
    """Write the small files of a run, as a trainer writes them."""

    def plant(name, value=0.5, *, steps=10, status="done", seed=0, lr=0.1, figures=FIGURES, **more):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = {"name": "c", "seed": seed, "optimizer": {"type": "SGD", "lr": lr}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        plan = {"ever_trained": [], "phases": [], "figures": figures}
        (run / "plan.json").write_text(json.dumps(plan))
        (run / "data.json").write_text(json.dumps({"inputs": [], "specs": {}, "classes": None}))
        line = {"step": steps, "epoch": 1.0, "phase": "all", "validation/accuracy": value}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if status is not None:
            summary = {
                "status": status,
                "steps": steps,
                "metrics": {"validation/accuracy": value, "validation/loss": 1 - value},
                "best": {"value": value, "step": steps},
                "seconds": {"training": 2.0, "evaluation": 0.5},
            }
            (run / "summary.json").write_text(json.dumps(summary | more))
        return run

    return plant


def names(groups):
    return [[run.name for run in group.runs] for group in groups]


def test_the_best_run_comes_first_whichever_way_its_figure_improves(plant, tmp_path):
    plant("middle", 0.5, lr=1)
    plant("high", 0.9, lr=2)
    plant("low", 0.1, lr=3)
    assert names(sorted_groups(find_runs(tmp_path / "runs"))) == [["high"], ["middle"], ["low"]]
    shutil.rmtree(tmp_path / "runs")
    falling = {"main": "validation/loss", "better": {"loss": "lower"}}
    for name, value in (("high", 0.9), ("low", 0.1)):
        plant(name, value, lr=value, figures=falling)
    assert names(sorted_groups(find_runs(tmp_path / "runs"))) == [["low"], ["high"]]


def test_runs_that_differ_in_the_seed_alone_are_one_group_with_mean_and_spread(plant, tmp_path):
    for seed, value in enumerate((0.7, 0.8, 0.9)):
        plant(f"s{seed}", value, seed=seed)
    plant("other", 0.85, lr=0.2)
    other, seeds = sorted_groups(find_runs(tmp_path / "runs"))
    assert names([other, seeds]) == [["other"], ["s2", "s1", "s0"]]
    assert seeds.mean == pytest.approx(0.8)
    assert seeds.spread == pytest.approx(0.1)
    assert other.spread is None


def test_a_copy_of_a_run_is_no_second_seed(plant, tmp_path):
    for name, seed, value in (("a", 0, 0.7), ("b", 1, 0.9), ("copy", 0, 0.7)):
        plant(name, value, seed=seed)
    seeds, copy = sorted_groups(find_runs(tmp_path / "runs"))
    assert names([seeds, copy]) == [["b", "a"], ["copy"]]
    assert seeds.mean == pytest.approx(0.8)


def test_a_run_that_was_killed_does_not_count_for_the_mean_of_those_that_are_done(plant, tmp_path):
    plant("a", 0.7, seed=0)
    plant("b", 0.9, seed=1)
    plant("killed", 0.1, seed=2, status=None)
    (seeds,) = sorted_groups(find_runs(tmp_path / "runs"))
    assert seeds.mean == pytest.approx(0.8)
    assert len(seeds.runs) == 3


def test_a_killed_run_does_not_take_the_place_of_its_repetition(plant, tmp_path):
    plant("a killed", 0.1, seed=0, status=None)
    plant("b", 0.7, seed=0)
    plant("c", 0.9, seed=1)
    seeds, killed = sorted_groups(find_runs(tmp_path / "runs"))
    assert names([seeds, killed]) == [["c", "b"], ["a killed"]]


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({"status": "done"}, "done"),
        ({"status": "stopped"}, "stopped"),
        ({"status": "failed", "reason": "loss is NaN"}, "failed"),
        ({"status": "of another release"}, "killed"),
        ({"status": None}, "killed"),
    ],
    ids=["done", "stopped", "failed", "unknown", "no summary"],
)
def test_the_status_of_a_run_is_read(plant, ended, status):
    run = plant("run", 0.25, **ended)
    record = read_run(run)
    assert record.status == status
    assert record.steps == 10
    assert record.value == 0.25
    assert record.reason == ended.get("reason")
    with locked(run):
        assert read_run(run).status == "running"


def test_a_run_that_went_on_after_its_summary_and_was_killed_is_killed(plant):
    run = plant("run", status="stopped")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "validation/accuracy": 0.75}) + '\n{"step": 13, "val')
    record = read_run(run)
    assert (record.status, record.steps, record.value) == ("killed", 12, 0.75)


def test_filters_take_fields_figures_and_keys_of_the_config(plant, tmp_path):
    plant("a", 0.5, lr=0.001)
    plant("b", 0.5, lr=0.1, status="failed")
    runs = find_runs(tmp_path / "runs")
    for text, expected in [
        ("status=failed", ["b"]),
        ("optimizer.lr=1e-3", ["a"]),
        ("validation/accuracy=0.5", ["a", "b"]),
        ("name=*", ["a", "b"]),
        ("optimizer.type=SG?", ["a", "b"]),
    ]:
        assert [run.name for run in chosen_runs(runs, [text])] == expected
    assert chosen_runs(runs, ["status=failed", "name=a"]) == []
    with pytest.raises(FinetuneError, match="no run has"):
        chosen_runs(runs, ["optimizer.rl=1"])
    with pytest.raises(FinetuneError, match="KEY=VALUE"):
        chosen_runs(runs, ["failed"])


def test_runs_in_folders_are_found_and_links_are_not_followed(plant, tmp_path):
    run = plant("sweep/trial")
    (tmp_path / "runs" / "link").symlink_to(run)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "empty").mkdir()
    assert [one.name for one in find_runs(tmp_path / "runs")] == ["sweep/trial"]
    assert [one.name for one in find_runs(run)] == ["trial"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff\xfe", b'{"step": [1]}'])
@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "metrics.jsonl", "summary.json"])
def test_a_damaged_file_leaves_the_run_in_the_table(plant, name, content):
    run = plant("run")
    with locked(run):
        pass
    (run / name).write_bytes(content)
    assert read_run(run).path == run
    (run / name).unlink()
    os.mkfifo(run / name)
    assert read_run(run).path == run
