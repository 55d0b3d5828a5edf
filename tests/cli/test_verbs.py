"""What the verbs show when all is well: results on standard output, all else on standard error."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(finetune, points):
    """A run of `points.yaml`, in `runs/points`."""
    assert finetune("train", "points.yaml", "-o", 'freeze=["body"]').code == 0
    return "runs/points"


def test_training_shows_the_plan_the_figures_the_proof_and_where_to_look(finetune, points):
    outcome = finetune("train", "points.yaml", "-o", 'freeze=["body"]')
    assert outcome.code == 0
    assert outcome.out == ""
    for wanted in (
        r"^body +frozen .*\b24\b",
        r"^head +trained .*\b18\b",
        r"^trained 18 of 42 parameters \(42\.86%\)$",
        r"^validation/accuracy +\d\.\d{4}$",
        r"^test/loss +\d\.\d{4}$",
        r"^proof +2 frozen tensors are bit-identical$",
        r"^run +runs/points$",
        r"^curves +finetune tensorboard runs$",
    ):
        assert re.search(wanted, outcome.err, re.MULTILINE), wanted


@pytest.mark.parametrize("name", ["--run-dir", "--run"])
def test_the_folder_of_a_run_is_given_by_either_name(finetune, points, name):
    outcome = finetune("train", "points.yaml", "-o", "train.epochs=1", name, "here")
    assert outcome.code == 0, outcome.err
    assert Path("here/summary.json").is_file()


def test_a_run_that_is_done_is_told_so_and_not_trained_again(finetune, trained):
    before = sorted(Path(trained).rglob("*"))
    outcome = finetune("train", "points.yaml", "-o", 'freeze=["body"]')
    assert outcome.code == 0
    assert "already done; --fresh begins anew" in outcome.err
    assert sorted(Path(trained).rglob("*")) == before


def test_plan_shows_blocks_and_in_full_every_parameter(finetune, points):
    folded, full = finetune("plan", "points.yaml"), finetune("plan", "points.yaml", "--full")
    assert re.search(r"^data +24 train, 8 validation, 8 test$", folded.out, re.MULTILINE)
    assert re.search(r"^classes +2: left, right$", folded.out, re.MULTILINE)
    assert re.search(r"^body +trained ", folded.out, re.MULTILINE)
    assert re.search(r"^body\.weight +trained .*\b16\b", full.out, re.MULTILINE)
    assert not Path("runs").exists()


@pytest.mark.parametrize("verb", ["plan", "eval"])
def test_json_is_one_document_also_when_the_users_network_prints(finetune, points, network, verb):
    if verb == "plan":
        outcome = finetune("plan", "looping.yaml", "--trust", network, "--json")
    else:
        finetune("train", "looping.yaml", "--trust", network)
        outcome = finetune("eval", "runs/looping", "--trust", network, "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document.keys() >= ({"phases"} if verb == "plan" else {"split", "metrics"})
    assert "noise of" in outcome.err


@pytest.mark.slow
def test_json_stays_clean_beside_a_library_that_prints():
    """EfficientNet's package prints on standard output while it is built."""
    command = [sys.executable, "-m", "finetune", "plan", "configs/mnist_efficientnet.yaml"]
    command += ["--json", "--trust", "efficientnet_lite_pytorch"]
    ended = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["phases"][0]["trained_parameters"] == 12810


def test_a_network_with_control_flow_of_its_own_trains_evaluates_and_predicts(
    finetune, points, network
):
    assert finetune("train", "looping.yaml", "--trust", network).code == 0
    evaluated = finetune("eval", "runs/looping", "--trust", network)
    assert re.search(r"^test/accuracy +\d\.\d{4}$", evaluated.out, re.MULTILINE)
    predicted = finetune("predict", "runs/looping", "points.csv", "--trust", network)
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    assert len(rows) == 40
    assert {row["label"] for row in rows} <= {"left", "right"}


def test_eval_of_another_part_shows_its_own_figures(finetune, trained):
    figures = {
        split: json.loads(finetune("eval", trained, "--split", split, "--json").out)
        for split in ("train", "validation", "test")
    }
    assert all(document["split"] == split for split, document in figures.items())
    losses = {document["metrics"]["loss"] for document in figures.values()}
    assert len(losses) == 3
    summary = json.loads((Path(trained) / "summary.json").read_text())["metrics"]
    for split in ("validation", "test"):
        assert figures[split]["metrics"]["loss"] == pytest.approx(summary[f"{split}/loss"])


def test_predict_writes_csv_with_a_column_for_each_class(finetune, trained):
    command = ("predict", trained, "points.csv", "--without-columns", "--out", "said.csv")
    assert finetune(*command) == (0, "", "40 predictions in said.csv\n")
    with Path("said.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "input", "label", "probability", "probability/left", "probability/right",
    ]  # fmt: skip
    assert len(rows) == 40
    for row in rows:
        assert row["probability"] == row[f"probability/{row['label']}"]


def test_predict_reads_json_lines_from_standard_input(finetune, trained, monkeypatch):
    lines = '{"u": -3, "v": 0}\n\n{"v": 0, "u": 3, "more": 1}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    outcome = finetune("predict", trained, "-")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(row["input"], row["label"]) for row in rows] == [("-:1", "left"), ("-:3", "right")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "u,w\n1,2\n", "x.csv: no column 'v'; there are: 'u', 'w'"),
        ("x.jsonl", '{"u": 1, "v": 2}\n{"u": 1}\n', "x.jsonl:2: no value for 'v'"),
        ("x.jsonl", '{"u": 1, "v": 2}\nu\n', "x.jsonl:2: not JSON"),
        ("x.csv", "u,v\n", "x.csv: holds no sample"),
        ("x.csv", "u,v\n1,2\n1,nan\n", "column 'v' holds nan in row 2 of x.csv"),
        ("x.csv", "u,v\n1,2\n1,two\n", "column 'v' holds 'two' in row 2 of x.csv"),
        ("x.csv", b"u,v\n1,\xff\n", "x.csv:2: is not valid utf-8"),
        ("x.txt", "1 2", "x.txt: the network takes the columns 'u', 'v'"),
    ],
)
def test_an_input_that_cannot_be_predicted_names_file_and_sample(
    finetune, trained, write, name, content, message
):
    write(name, content)
    outcome = finetune("predict", trained, name, "--out", "said.csv")
    assert outcome.code == 2
    assert outcome.err.startswith(message), outcome.err
    assert len(outcome.err.splitlines()) <= 2
    assert sorted(path.name for path in Path().glob("*said.csv*")) == []


def test_an_output_that_cannot_be_written_is_told(finetune, trained):
    outcome = finetune("predict", trained, "points.csv", "--out", "nowhere/said.csv")
    assert outcome.code == 2
    assert outcome.err.startswith("nowhere/said.csv: cannot be written")


def test_a_failing_prediction_leaves_the_earlier_output_alone(finetune, trained, write):
    write("said.jsonl", "earlier\n")
    write("x.csv", "u,v\n1,nan\n")
    assert finetune("predict", trained, "x.csv", "--out", "said.jsonl").code == 2
    assert Path("said.jsonl").read_text() == "earlier\n"
    assert [path.name for path in Path().glob(".said*")] == []


def test_inspect_folds_what_is_frozen_and_shows_the_cut(finetune, points):
    outcome = finetune("inspect", "points.yaml", "-o", 'freeze=["body"]')
    assert re.search(r"^body +2 tensors +frozen +none$", outcome.out, re.MULTILINE)
    assert re.search(r"^head\.weight +\(2, 8\) +trained +[\d.e-]+$", outcome.out, re.MULTILINE)
    assert re.search(
        r"^cut +after relu \(ReLU\): backward ends at head \(Linear, AddmmBackward0\)$",
        outcome.out,
        re.MULTILINE,
    )
    full = finetune("inspect", "points.yaml", "-o", 'freeze=["body"]', "--full")
    assert re.search(r"^body\.weight +\(8, 2\) +frozen +none$", full.out, re.MULTILINE)
    assert not Path("runs").exists()


def test_names_in_square_brackets_are_printed_as_they_are(finetune, points, write, config):
    write("points.csv", points.with_suffix(".csv").read_text().replace("left", "[bold]"))
    assert "classes  2: [bold], right" in finetune("plan", "points.yaml").out


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_no_traceback(finetune, trained):
    """`finetune predict ... | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "finetune", "predict", trained, "points.csv"]
    ended = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert b"Traceback" not in ended.stderr
