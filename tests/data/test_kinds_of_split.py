"""Splits by a column, by groups, in folds, with a few samples a class: what each promises."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch
from hypothesis import given, settings, strategies as st

from finetune.config.data import DataConfig, SplitConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.opening import Record, open_data
from finetune.data.parts.splits import split_samples
from finetune.data.parts.spread import spread
from finetune.errors import DataError

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def rows_of(count, **columns):
    names = ["x", "label", *columns]
    return [names, *([n, "ab"[n % 2], *(c[n] for c in columns.values())] for n in range(count))]


@pytest.fixture
def split(write_csv, prepared):
    """Return x of the samples of each part, and the notes."""

    def make(rows, split, task="classification"):
        data = {"source": write_csv(rows), "inputs": ["x"], "target": "label", "split": split}
        made = prepared(data, task)
        parts = {name: getattr(made, name) for name in ("train", "validation", "test")}
        return {
            name: some.fetch(range(len(some))).inputs["x"].flatten().int().tolist()
            for name, some in parts.items()
            if some is not None
        }, made.notes_on_all

    return make


@pytest.mark.parametrize(
    "names",
    [("train", "valid", "test"), ("Training", "DEV", "Test"), ("train", "val", "testing")],
    ids=" ".join,
)
def test_a_column_names_the_part_of_each_sample(split, names):
    places = [names[0], names[0], names[1], names[2]] * 3
    parts, _ = split(rows_of(12, fold=places), {"by": "fold"})
    assert parts == {
        "train": [0, 1, 4, 5, 8, 9], "validation": [2, 6, 10], "test": [3, 7, 11]
    }  # fmt: skip


@pytest.mark.parametrize("flags", [("True", "False"), ("1", "0"), ("yes", "no")], ids=" ".join)
def test_a_column_of_flags_says_what_is_for_validation(split, flags):
    places = [flags[0] if n in (1, 4) else flags[1] for n in range(6)]
    parts, _ = split(rows_of(6, is_valid=places), {"by": "is_valid"})
    assert parts == {"train": [0, 2, 3, 5], "validation": [1, 4]}


@pytest.mark.parametrize("name", ["is_latest", "contest", "constrained", "isVal"])
def test_flags_with_a_part_inside_a_word_say_what_is_for_validation(split, name):
    parts, _ = split(rows_of(4, **{name: ["1", "0", "0", "0"]}), {"by": name})
    assert parts == {"train": [1, 2, 3], "validation": [0]}


@pytest.mark.parametrize("name", ["is_train", "isTrain", "train_set", "istest", "TEST", "Testing"])
def test_flags_of_another_part_are_refused(split, name):
    with pytest.raises(DataError, match=f"column '{name}' seems to say what is for t") as caught:
        split(rows_of(4, **{name: ["1", "1", "0", "1"]}), {"by": name})
    assert "call it is_valid" in caught.value.hint
    # Names of parts say it themselves.
    named = ["train", "train", "test", "train"]
    parts, _ = split(rows_of(4, **{name: named}), {"by": name})
    assert parts == {"train": [0, 1, 3], "test": [2]}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ["train", "train", "holdout"],
            "column 'fold' holds 'holdout' in row 3 of .*, which names",
        ),
        (["train", "train", ""], "column 'fold' has no value in row 3 of "),
        (["test", "dev", "test"], "column 'fold' leaves no sample to train on"),
    ],
)
def test_a_column_that_names_no_part_is_told_with_its_row(split, places, message):
    with pytest.raises(DataError, match=message):
        split(rows_of(3, fold=places), {"by": "fold"})


@pytest.mark.parametrize("key", ["by", "group"])
def test_a_column_that_is_not_there_is_told(split, key):
    with pytest.raises(DataError, match="no column 'fodl'") as caught:
        split(
            rows_of(3, fold=["train"] * 3),
            {key: "fodl"} | ({"test": 0.3} if key == "group" else {}),
        )
    assert caught.value.key == ("data", "split", key)
    assert "fold" in caught.value.hint


@pytest.mark.parametrize("more", [{}, {"stratify": True}], ids=["plain", "stratified"])
def test_samples_of_a_group_stay_in_one_part(split, more):
    authors = [f"author {n % 13}" for n in range(100)]
    parts, _ = split(
        rows_of(100, author=authors), {"validation": 0.2, "test": 0.2, "group": "author", **more}
    )
    assert sorted(chain(*parts.values())) == list(range(100))
    homes = Counter(author for rows in parts.values() for author in {authors[row] for row in rows})
    assert set(homes.values()) == {1}
    assert all(10 <= len(parts[name]) <= 30 for name in ("validation", "test"))


def test_groups_that_meet_no_share_are_told(split):
    authors = ["one"] * 60 + [f"other {n}" for n in range(40)]
    parts, notes = split(rows_of(100, author=authors), {"validation": 0.5, "group": "author"})
    size = len(parts["validation"])
    assert size in (40, 60)
    note = f"validation has {size} of 100 samples, {size}.0%, not 50.0%"
    assert f"{note}: those of a group stay together" in notes


def test_copies_and_groups_hold_each_other_together(split):
    # x = 5 occurs twice, with two authors: all rows of both authors belong to one part
    rows = rows_of(40, author=[f"author {n // 4}" for n in range(40)])
    rows[21][0] = rows[6][0] = 5
    split_ = {"validation": 0.25, "test": 0.25, "group": "author", "copies": "together"}
    parts, _ = split(rows, split_)
    [home] = [set(some) for some in parts.values() if 5 in some]
    assert {4, 6, 7, 21, 22, 23} <= home


@pytest.mark.parametrize("more", [{}, {"stratify": True}], ids=["plain", "stratified"])
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_folds_share_the_test_part_and_cover_all_others_once(split, test, more):
    folds = [split(rows_of(50), {"folds": 4, "fold": n, "test": test, **more})[0] for n in range(4)]
    held = [row for parts in folds for row in parts["validation"]]
    assert len(held) == len(set(held)) == 50 - round(50 * test)
    assert len({tuple(parts.get("test", ())) for parts in folds}) == 1
    for parts in folds:
        assert sorted(chain(*parts.values())) == list(range(50))
        if more:
            assert (
                abs(sum(row % 2 for row in parts["validation"]) - len(parts["validation"]) / 2) <= 1
            )


def test_a_few_samples_of_each_class_train_and_the_others_are_told(split):
    parts, notes = split(rows_of(60), {"test": 0.5, "per_class": 4, "stratify": True})
    assert Counter(row % 2 for row in parts["train"]) == {0: 4, 1: 4}
    assert len(parts["test"]) == 30
    assert "per_class: 22 of 30 training samples are left out" in notes
    again, _ = split(rows_of(60), {"test": 0.5, "per_class": 4, "stratify": True})
    assert again == parts
    _, notes = split(rows_of(60), {"test": 0.5, "per_class": 16, "stratify": True})
    assert any(
        "2 of 2 classes have fewer than 16 training samples, such as 'a'" in n for n in notes
    )


def test_a_few_of_each_class_need_classes(split):
    rows = [["x", "label"], *([n, n / 2] for n in range(10))]
    with pytest.raises(DataError, match="per_class needs classes, the task is 'regression'"):
        split(rows, {"test": 0.2, "per_class": 2}, task="regression")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"by": "a", "test": 0.2}, "'by' names the part of each sample, 'test' draws it"),
        ({"by": "a", "group": "b"}, "'by' names the part of each sample, 'group' draws it"),
        ({"folds": 3, "validation": 0.1}, "'folds' makes the validation part"),
        ({"fold": 1}, "'fold' needs 'folds'"),
        ({"folds": 3, "fold": 3}, r"fold \(3\) counts from 0 to 2"),
    ],
)
def test_keys_that_exclude_each_other_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig.model_validate(config)


@given(
    labels=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=60, max_size=120),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_several_labels_keep_their_shares(labels, seed):
    flags = torch.tensor(labels).float()
    parts = spread(torch.arange(len(flags)), flags, SHARES, seed)
    assert sorted(torch.cat([*parts.values()]).tolist()) == list(range(len(flags)))
    for name, share in SHARES.items():
        wanted = share * flags.sum(0)
        assert bool(((flags[parts[name]].sum(0) - wanted).abs() <= 4 + 0.1 * wanted).all())


def test_the_spread_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = spread(torch.arange(50), None, SHARES, 3)
    torch.manual_seed(2)
    again, other = (spread(torch.arange(50), None, SHARES, seed) for seed in (3, 4))
    assert all(torch.equal(first[part], again[part]) for part in SHARES)
    assert not torch.equal(first["test"], other["test"])
    assert [len(first[part]) for part in SHARES] == [30, 10, 10]


def test_several_labels_without_strata_are_split_as_ever(split):
    rows = [["x", "label"], *([n, ("a", "b", "a,b")[n % 3]] for n in range(60))]
    shares = {"validation": 0.2, "test": 0.2}
    parts, _ = split(rows, shares, task="multilabel")
    expected = split_samples(SplitConfig(**shares), 0, torch.arange(60))
    assert parts == {name: some.tolist() for name, some in expected.items()}


def test_a_run_that_has_begun_with_flags_of_another_part_goes_on(write_csv):
    def opened(name, record=None):
        rows = rows_of(4, **{name: ["1", "0", "0", "0"]})
        data = {"source": write_csv(rows), "inputs": ["x"], "target": "label"}
        config = DataConfig.model_validate({**data, "split": {"by": name}})
        task = ClassificationTask(type="classification")
        return open_data(config, task, seed=0, trust=(), record=record)

    # As an earlier version has split it, which did not look at the name.
    before = opened("fold")
    with pytest.raises(DataError, match="seems to say what is for train"):
        opened("is_train")
    columns = {name.replace("fold", "is_train"): h for name, h in before.identity.columns.items()}
    identity, asked = replace(before.identity, columns=columns), []
    for each, is_asked in ((identity, False), (before.identity, True)):
        record = Record(each, before.facts.kinds, asked.append, trains=True)
        assert opened("is_train", record).facts.sizes == {"train": 3, "validation": 1}
        assert bool(asked) is is_asked
