"""What each task makes of the target column."""

import pytest
import torch

from finetune.errors import DataError

XY = {"inputs": ["x"], "target": "y"}


def rows_of(values):
    return [{"x": float(n), "y": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "classes", "target"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([2.0, 1.0, 2.0], ("1", "2"), [1, 0, 1]),
        ([True, False], ("0", "1"), [1, 0]),
    ],
    ids=["text", "whole numbers", "floats that are whole", "booleans"],
)
def test_classes_are_sorted_and_numbered(write_jsonl, opened, values, classes, target):
    data = opened(XY | {"source": write_jsonl(rows_of(values))})
    assert data.facts.classes == classes
    assert torch.equal(data.train.target, torch.tensor(target))


@pytest.mark.parametrize(
    ("values", "classes", "target"),
    [
        (["a,b", "", "c, a"], ("a", "b", "c"), [[1, 1, 0], [0, 0, 0], [1, 0, 1]]),
        ([["b"], ["a", "b"]], ("a", "b"), [[0, 1], [1, 1]]),
        ([[0, 1], [1, 0]], ("0", "1"), [[0, 1], [1, 0]]),
    ],
    ids=["text", "lists", "matrix"],
)
def test_label_sets_become_rows_of_zero_and_one(write_jsonl, opened, values, classes, target):
    data = opened(XY | {"source": write_jsonl(rows_of(values))}, "multilabel")
    assert data.facts.classes == classes
    assert torch.equal(data.train.target, torch.tensor(target, dtype=torch.float32))


def test_numeric_cells_can_be_label_sets(write_csv, opened):
    source = write_csv([["x", "y"], ["1", "3"], ["2", "3,4"]])
    assert opened(XY | {"source": source}, "multilabel").facts.classes == ("3", "4")


def test_an_imported_task_gets_numbers_as_they_are_and_text_as_classes(write_jsonl, opened):
    task = {"type": "import", "path": "mine:make"}
    whole = opened(XY | {"source": write_jsonl(rows_of([5, 7]))}, task)
    assert (whole.facts.classes, whole.train.target.tolist()) == (None, [5, 7])
    assert whole.train.target.dtype == torch.int64
    text = opened(XY | {"source": write_jsonl(rows_of(["b", "a"]))}, task)
    assert (text.facts.classes, text.train.target.tolist()) == (("a", "b"), [1, 0])
    none = opened({"source": write_jsonl([{"x": 1.0}])}, task)
    assert (none.facts.target, none.train.target) == (None, None)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("regression", ["high"], "'y' holds 'high' in row 1 .* where a number is needed"),
        ("regression", [1.0, float("nan")], "'y' holds nan in row 2"),
        ("classification", [[1, 2], [3, 4]], r"'y' holds \(2,\) numbers a sample"),
        ("multilabel", [[0, 2], [1, 0]], "must hold a row of 0 and 1"),
        ("multilabel", [[0, 2.5], [1]], r"'y' holds \[0, 2\.5\] in row 1"),
    ],
)
def test_a_target_that_means_nothing_to_the_task_is_told(
    write_jsonl, opened, task, values, message
):
    with pytest.raises(DataError, match=message):
        opened(XY | {"source": write_jsonl(rows_of(values))}, task)
