"""Rows of a run are told by their hashes, each of which stands for one row."""

from dataclasses import replace

import pytest
import torch

from finetune.config.data import DataConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.identify.identity import DataIdentity, hash_rows
from finetune.data.identify.membership import (
    drawn_parts,
    keep_parts,
    never_trained,
    parts_of_groups,
    untrained,
)
from finetune.data.opening import Record, open_data
from finetune.data.table import Listed
from finetune.errors import DataError
from finetune.runs.validated_on import validation_samples

SHARES = {"validation": 0.2, "test": 0.3}


def hashes(rows):
    """Hash rows written as an input and a target: `a1`."""
    columns = {
        "input": Listed([row[:-1] for row in rows], "text"),
        "target": Listed([row[-1] for row in rows], "text"),
    }
    return hash_rows(columns, ["input"])


def identity(**parts):
    return DataIdentity.of({part: hashes(rows) for part, rows in parts.items()}, None)


def kept(before, rows):
    now = hashes(rows)
    parts, lines = keep_parts(before, now, drawn_parts(now, SHARES, seed=0))
    return {part: [rows[row] for row in taken] for part, taken in parts.items()}, lines


def test_of_copies_in_several_parts_each_stays_where_it_was():
    before = identity(train=["a1", "b1"], validation=["a1"], test=["a1", "c1"])
    parts, lines = kept(before, ["c1", "a1", "a1", "b1", "a1"])
    assert parts == {"train": ["a1", "b1"], "validation": ["a1"], "test": ["c1", "a1"]}
    assert lines == []


@pytest.mark.parametrize("rows", [["a1", "a1", "a1"], ["a2", "a1", "a1"], ["a1", "a2", "a1", "a3"]])
def test_a_further_copy_of_what_was_trained_on_trains_whatever_its_target(rows):
    before = identity(train=["a1", "b1"], test=["a1", "c1"])
    parts, lines = kept(before, [*rows, "c1"])
    assert parts["test"] == ["a1", "c1"]
    assert len(parts["train"]) == len(rows) - 1
    assert lines == []


def test_a_further_copy_of_a_test_row_is_tested():
    parts, _ = kept(identity(train=["b1"], test=["a1"]), ["a1", "a2", "b1"])
    assert parts == {"train": ["b1"], "test": ["a1", "a2"]}


def test_new_rows_are_drawn_by_their_shares_and_by_nothing_else():
    before = identity(train=["b1"])
    rows = [f"new{n}x1" for n in range(2000)]
    parts, lines = kept(before, ["b1", *rows])
    shares = {part: len(taken) / 2000 for part, taken in parts.items()}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.2, "test": 0.3}, abs=0.05)
    assert lines[0].startswith("rows that the run does not know: 2000, ")
    fewer, _ = kept(before, [*rows[::-2], "b1"])
    assert all(set(taken) <= set(parts[part]) for part, taken in fewer.items())


def test_without_hashes_of_inputs_no_unknown_row_is_tested():
    before = identity(train=["a1"], test=["c1"])
    before = DataIdentity(before.columns, None, before.parts, before.sizes)
    parts, _ = kept(before, ["a1", "a2", "c1", "d1"])
    assert parts == {"train": ["a1", "a2", "d1"], "test": ["c1"]}


def test_objects_that_cannot_be_compared_are_not_tested():
    things = Listed([object(), "a"], "things")
    before = DataIdentity.of({"train": hash_rows({"input": things}, ["input"])}, None)
    now = hash_rows({"input": Listed([object() for _ in range(9)], "things")}, ["input"])
    parts, _ = keep_parts(before, now, drawn_parts(now, {"test": 0.9}, seed=0))
    assert torch.equal(parts["train"], torch.arange(9))


def test_where_nothing_is_left_of_a_part_or_too_much_was_there_it_is_an_error(monkeypatch):
    before = identity(train=["a1"], test=["c1"])
    with pytest.raises(DataError, match="none of the rows that the run was trained on is left"):
        kept(before, ["c1"])
    with pytest.raises(DataError, match="2 of 2 rows of the test part were trained on"):
        never_trained(before, "test", hashes(["a1", "a2"]))
    monkeypatch.setattr("finetune.data.identify.identity.MOST_HASHED_ROWS", 1)
    with pytest.raises(DataError, match="which of 3 rows were trained on is not known"):
        kept(identity(train=["a1", "b1"], test=["c1"]), ["a1"])


def test_new_rows_of_a_known_group_have_its_part_and_those_of_a_trained_group_train():
    before = identity(train=["a1", "b1"], validation=["c1"], test=["d1"])
    rows, groups = ["a1", "b1", "c1", "d1", "e1", "f1", "g1"], ["x", "y", "z", "w", "x", "z", "w"]
    now = hashes(rows)
    parts, lines = keep_parts(before, now, parts_of_groups(groups, SHARES, 0))
    assert {name: some.tolist() for name, some in parts.items()} == {
        "train": [0, 1, 4], "validation": [2, 5], "test": [3, 6]
    }  # fmt: skip
    assert lines == [
        "rows that the run does not know: 3, 1 in train, 1 in validation, 1 in test; all others "
        "keep their part"
    ]


def test_new_rows_that_would_train_may_be_left_out():
    before = identity(train=["a1"], test=["b1"])
    now = hashes(["a1", "b1", "c1", "d1"])
    parts, lines = keep_parts(before, now, untrained(drawn_parts(now, {}, 0)))
    assert {name: some.tolist() for name, some in parts.items()} == {"train": [0], "test": [1]}
    assert lines == ["rows that the run does not know: 2, 2 left out; all others keep their part"]


def test_which_samples_validate_is_told_alike_by_a_run_and_by_its_folder():
    one, other = (identity(train=["a1"], validation=rows) for rows in (["b1", "c1"], ["c1", "b1"]))
    assert one.validation_digest == other.validation_digest != ""
    document = {"identity": one.as_document(), "inputs": ["input"], "target": "target"}
    assert validation_samples(document).digest == one.validation_digest
    assert identity(train=["a1"]).validation_digest == ""


def test_mended_samples_are_no_others_to_validate_on(tmp_path):
    def opened(last, record=None):
        for part, rows in {"train": ["a,1", "b,2"], "validation": ["c,1", last]}.items():
            (tmp_path / f"{part}.csv").write_text("\n".join(["text,label", *rows]))
        parts = ("train", "validation")
        sources = {part: {"type": "csv", "path": str(tmp_path / f"{part}.csv")} for part in parts}
        task = ClassificationTask(type="classification")
        return open_data(DataConfig.model_validate(sources), task, seed=0, trust=(), record=record)

    first = opened("d,2")
    before, asked = replace(first.identity, unread={"validation": (1,)}), []
    for last in ("e,2", "e,2", "f,2"):
        now = opened(last, Record(before, first.facts.kinds, asked.append, trains=True)).identity
        assert now.validation_digest == first.identity.validation_digest
        before = DataIdentity.read(now.as_document(), list(now.classes))
        before = replace(before, unread={"validation": (1,)} if last == "e,2" else {})
    assert asked == []
    now = opened("g,2", Record(before, first.facts.kinds, asked.append, trains=True)).identity
    assert asked
    assert now.validation_digest != first.identity.validation_digest
