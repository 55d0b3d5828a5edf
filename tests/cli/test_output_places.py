"""What `--out` and `--write` refuse: lost inputs, other endings, missing folders."""

import io
import json
import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def trained(finetune, points):
    assert finetune("train", "points.yaml", "-o", "train.epochs=1").code == 0
    return "runs/points"


def beside(name):
    """Return for each way of naming a file what makes such a name and returns it."""
    return {
        "the same": lambda: name,
        "another way": lambda: f"./runs/../{name}",
        "link": lambda: Path("other.csv").symlink_to(name) or "other.csv",
        "hard link": lambda: Path("other.csv").hardlink_to(name) or "other.csv",
    }


@pytest.mark.parametrize("way", ["the same", "another way", "link", "hard link"])
def test_predictions_do_not_replace_the_table_they_are_made_for(finetune, trained, way):
    before = Path("points.csv").read_bytes()
    out = beside("points.csv")[way]()
    outcome = finetune("predict", trained, "points.csv", "--out", out)
    assert outcome.code == 2
    assert outcome.err.splitlines()[0] == (
        f"{Path(out)}: would replace 'points.csv', a file that this command reads"
    )
    assert Path("points.csv").read_bytes() == before


def test_predictions_do_not_replace_a_table_of_the_input_folder(finetune, trained, write):
    write("new/a.csv", "u,v\n1,2\n")
    outcome = finetune("predict", trained, "new", "--out", "new/a.csv")
    assert outcome.code == 2
    assert "would replace 'new/a.csv'" in outcome.err
    assert Path("new/a.csv").read_text() == "u,v\n1,2\n"


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "plan.json", "checkpoints"])
def test_predictions_do_not_replace_a_file_of_the_run(finetune, trained, name):
    path = Path(trained, name)
    if path.is_dir():
        path = next(path.rglob("progress.json"))
    before = path.read_bytes()
    outcome = finetune("predict", trained, "points.csv", "--out", path)
    assert outcome.code == 2
    assert f"would replace '{path}'" in outcome.err
    assert path.read_bytes() == before


def test_predictions_may_be_kept_in_the_run_folder_and_made_again(finetune, trained):
    for _ in range(2):
        assert finetune("predict", trained, "points.csv", "--out", f"{trained}/p.csv").code == 0


def test_a_table_that_the_shell_hands_in_is_not_replaced(finetune, trained, monkeypatch):
    with Path("points.csv").open("rb") as file:
        before = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            monkeypatch.setattr(sys, "stdin", io.StringIO("u,v\n1,2\n"))
            outcome = finetune("predict", trained, "-", "--out", "points.csv")
        finally:
            os.dup2(before, 0)
            os.close(before)
    assert outcome.code == 2
    assert "would replace '/dev/stdin'" in outcome.err


def test_a_plan_does_not_replace_its_config(finetune, points):
    before = points.read_bytes()
    outcome = finetune("plan", "points.yaml", "--write", "points.yaml")
    assert outcome.code == 2
    assert "points.yaml: is there already" in outcome.err
    assert points.read_bytes() == before


@pytest.mark.parametrize("name", ["p.xlsx", "p.feather", "p.csv.gz", "p.tsv", "p.CSVX"])
def test_an_ending_of_another_format_is_refused_before_the_run_is_read(finetune, write, name):
    outcome = finetune("predict", "norun", "points.csv", "--out", name)
    assert outcome.code == 2
    ending = Path(name).suffix.lower()
    assert outcome.err.startswith(f"{name}: no output has the ending '{ending}'")
    assert not Path(name).exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [("p.txt", ", as JSON lines"), ("p", ", as JSON lines"), ("p.jsonl", ""), ("p.CSV", "")],
)
def test_a_form_that_the_ending_does_not_tell_is_told(finetune, trained, name, told):
    outcome = finetune("predict", trained, "points.csv", "--without-columns", "--out", name)
    assert outcome == (0, "", f"40 predictions in {name}{told}\n")


@pytest.mark.parametrize(
    "command",
    [("predict", "norun", "points.csv", "--out"), ("plan", "none.yaml", "--write")],
    ids=["predict", "plan"],
)
def test_a_missing_folder_is_told_before_anything_is_read(finetune, command, tmp_path):
    outcome = finetune(*command, "nodir/p.csv")
    assert outcome.code == 2
    told = f"nodir/p.csv: cannot be written: there is no folder '{tmp_path / 'nodir'}'"
    assert outcome.err.startswith(told)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (("predict", "norun", ""), "argument 2"),
        (("predict", "", "new.csv"), "argument 1"),
        (("predict", "norun", "new.csv", "--out", ""), "--out"),
        (("predict", "norun", "new.csv", "--out="), "--out"),
        (("eval", "norun", ""), "argument 2"),
        (("train", ""), "argument 1"),
        (("train", "points.yaml", "--run", ""), "--run"),
        (("validate", "points.yaml", ""), "argument 2"),
        (("plan", ""), "argument 1"),
        (("inspect", ""), "argument 1"),
        (("doctor", ""), "argument 1"),
        (("cache", "clear", ""), "argument 2"),
        # a port that is refused: no server starts if the check is ever missing
        (("tensorboard", "", "--port", "99999"), "argument 1"),
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_refused_by_every_verb(finetune, points, command, where):
    outcome = finetune(*command)
    assert outcome.code == 2
    assert outcome.err.splitlines()[0] == f"{where}: is empty"
    assert len(outcome.err.splitlines()) == 2


def test_the_step_of_the_weights_is_told_with_the_figures_of_the_test(finetune, points):
    # Two clouds are told apart in the first epochs: of equal values the earlier one is the best.
    rising = ("-o", "train.checkpoint.best=validation/accuracy", "-o", "train.epochs=4")
    outcome = finetune("train", "points.yaml", *rising)
    assert outcome.code == 0, outcome.err
    summary = json.loads(Path("runs/points/summary.json").read_text())
    step = summary["best"]["step"]
    assert step < summary["steps"]
    assert f"\ntest, by the weights of step {step}:  test/loss " in outcome.err
    assert f"by the weights of step {step}\nvalidation/loss" in outcome.err
    lines = [
        json.loads(line) for line in Path("runs/points/metrics.jsonl").read_text().splitlines()
    ]
    assert (lines[-1]["step"], lines[-1]["weights_step"]) == (summary["steps"], step)
    assert not any("weights_step" in line for line in lines[:-1])


def test_without_a_best_step_the_test_is_by_the_last_weights(finetune, points):
    last = ("-o", "train.checkpoint.best=null", "-o", "train.epochs=1")
    outcome = finetune("train", "points.yaml", *last)
    assert outcome.code == 0, outcome.err
    assert "\ntest, by the weights of step 3:  test/loss " in outcome.err
    assert "\nfigures " not in outcome.err


@pytest.mark.parametrize(
    ("verb", "what"), [("certify", "certificate"), ("report", "page about runs")]
)
@pytest.mark.parametrize("way", ["the same", "link"])
def test_what_a_verb_makes_replaces_its_own_kind_alone(finetune, trained, write, verb, what, way):
    write("thesis.csv", "work of a year\n")
    out = beside("thesis.csv")[way]()
    outcome = finetune(verb, trained, "--out", out)
    assert outcome.code == 2
    assert outcome.err.splitlines()[0] == f"{out}: is there already, and is no {what}"
    assert Path("thesis.csv").read_text() == "work of a year\n"
    for _ in range(2):
        assert finetune(verb, trained, "--out", "made").code == 0
