"""Every logged step is one whole line of JSON, whatever happens to the process."""

import json
import math

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.tracking.json_lines import JsonLines, cut_back, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def write(path, *steps):
    tracker = JsonLines(path)
    for step in steps:
        tracker.scalars(step, {"train/loss": step / 10})
    tracker.close()


def steps_in(path):
    return [entry["step"] for entry in read_metrics(path)]


def test_a_line_can_be_read_as_soon_as_the_call_returns(path):
    tracker = JsonLines(path)
    for step in (1, 2, 3):
        tracker.scalars(step, {"epoch": 0.5, "phase": "head", "train/loss": 0.25})
        last = path.read_text().splitlines()[-1]
        expected = {"step": step, "epoch": 0.5, "phase": "head", "train/loss": 0.25}
        assert json.loads(last) == expected


def test_a_line_begins_with_step_and_keeps_the_order_given(path):
    JsonLines(path).scalars(7, {"epoch": 1.0, "phase": "all", "validation/loss": 2})
    assert path.read_text() == ('{"step": 7, "epoch": 1.0, "phase": "all", "validation/loss": 2}\n')


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")], ids=repr)
def test_a_figure_that_json_lacks_becomes_null_and_its_tag_is_listed(path, value):
    JsonLines(path).scalars(1, {"train/loss": value, "train/grad_norm": 1.0})
    [entry] = read_metrics(path)
    assert entry["train/loss"] is None
    assert entry["non_finite"] == ["train/loss"]
    assert entry["train/grad_norm"] == 1.0


def test_a_figure_of_numpy_is_written_as_a_number(path):
    JsonLines(path).scalars(1, {"train/loss": np.float32(0.5)})
    assert read_metrics(path) == [{"step": 1, "train/loss": 0.5}]


def test_of_the_step_where_a_run_goes_on_only_lines_from_before_its_checkpoint_stay(path):
    first = JsonLines(path)
    first.begin(0, 10, lines=0)
    first.scalars(4, {"train/loss": 1.0})
    first.scalars(4, {"validation/loss": 0.5})
    first.scalars(4, {"test/loss": 0.25})  # told after the checkpoint, which knows two lines
    again = JsonLines(path)
    again.begin(4, 10, lines=2)
    again.scalars(4, {"test/loss": 0.25})
    assert [list(line)[1] for line in read_metrics(path)] == [
        "train/loss",
        "validation/loss",
        "test/loss",
    ]


def test_a_second_process_appends(path):
    write(path, 1, 2)
    write(path, 3)
    assert steps_in(path) == [1, 2, 3]


def test_a_line_cut_short_by_a_kill_is_neither_read_nor_built_upon(path):
    write(path, 1, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "tra')
    assert steps_in(path) == [1, 2]
    write(path, 3)
    assert steps_in(path) == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"train/loss": 1}', "\udcff"], ids=ascii)
def test_a_damaged_line_is_named(path, line):
    write(path, 1)
    with path.open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    write(path, 2)
    with pytest.raises(FinetuneError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("step", "left"), [(0, []), (2, [1, 2]), (3, [1, 2, 3, 3]), (9, [1, 2, 3, 3, 4])]
)
def test_cutting_back_drops_the_lines_after_the_step_and_only_those(path, step, left):
    write(path, 1, 2, 3, 3, 4)
    before = path.read_bytes().splitlines()
    cut_back(path, step)
    assert steps_in(path) == left
    assert path.read_bytes().splitlines() == before[: len(left)]
    assert list(path.parent.iterdir()) == [path]


def test_cutting_back_a_file_that_does_not_exist_makes_none(path):
    cut_back(path, 3)
    assert not path.exists()


@pytest.mark.parametrize(("step", "left"), [(0, [9]), (2, [0, 1, 2, 9])])
def test_a_run_that_begins_at_a_step_voids_what_was_told_of_later_ones(path, step, left):
    write(path, 0, 1, 2, 3)
    tracker = JsonLines(path)
    tracker.begin(step, total_steps=10)
    tracker.scalars(9, {})
    assert steps_in(path) == left


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(FinetuneError, match="cannot write"):
        JsonLines(tmp_path / "run" / "metrics.jsonl").scalars(1, {})
    with pytest.raises(FinetuneError, match="cannot read"):
        read_metrics(tmp_path / "absent.jsonl")
