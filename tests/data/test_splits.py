"""Parts have exact sizes, the same for the same seed; copies stay where they are told to."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings, strategies as st

from finetune.config.data import SplitConfig
from finetune.data.parts.splits import split_samples
from finetune.errors import DataError

THIRDS = SplitConfig(validation=0.1, test=0.2)


def split(config, *, groups=None, strata=None, seed=0, count=100):
    groups = torch.arange(count) if groups is None else torch.tensor(groups)
    names = () if strata is None else [f"c{n}" for n in range(max(strata) + 1)]
    strata = None if strata is None else torch.tensor(strata)
    return split_samples(config, seed, groups, strata=strata, names=names)


@given(count=st.integers(20, 200), validation=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
@settings(max_examples=50, deadline=None)
def test_every_sample_is_in_one_part_and_sizes_are_the_rounded_shares(count, validation, test):
    parts = split(SplitConfig(validation=validation, test=test), count=count)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(count))
    assert len(parts["validation"]) == round(count * validation)
    assert len(parts["test"]) == round(count * test)


def test_the_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = split(THIRDS)
    torch.manual_seed(2)
    again, other = split(THIRDS), split(THIRDS, seed=1)
    assert all(torch.equal(first[part], again[part]) for part in first)
    assert not torch.equal(first["test"], other["test"])


@given(st.lists(st.integers(3, 40), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_stratified_parts_hold_every_class_in_its_share(sizes):
    strata = [n for n, size in enumerate(sizes) for _ in range(size)]
    config = SplitConfig(validation=0.3, test=0.3, stratify=True)
    parts = split(config, strata=strata, count=len(strata))
    for part in ("validation", "test"):
        counts = Counter(strata[row] for row in parts[part].tolist())
        assert len(parts[part]) == round(0.3 * len(strata))
        for number, size in enumerate(sizes):
            assert counts[number] >= 1
            assert abs(counts[number] - 0.3 * size) < 2
    assert {strata[row] for row in parts["train"].tolist()} == set(strata)


@given(st.lists(st.integers(0, 60), min_size=20, max_size=80), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_groups_are_never_parted(groups, seed):
    parts = split(THIRDS, groups=groups, seed=seed)
    homes = [{groups[row] for row in rows.tolist()} for rows in parts.values()]
    assert len(set().union(*homes)) == sum(len(home) for home in homes)
    assert len(parts["test"]) <= round(0.2 * len(groups))


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([0] * 50 + [1], "class 'c1' has 1 sample, too few for 3 parts"),
        ([0] * 50 + [1, 1], "class 'c1' has 2 samples, too few for 3 parts"),
        ([n // 3 for n in range(30)], "6 samples cannot hold some of each of 10 classes"),
    ],
    ids=["one sample", "two samples", "too many classes"],
)
def test_a_class_that_cannot_be_in_every_part_is_told(strata, message):
    with pytest.raises(DataError, match=message):
        split(
            SplitConfig(validation=0.1, test=0.2, stratify=True), strata=strata, count=len(strata)
        )


@pytest.mark.parametrize(
    ("count", "validation", "message"),
    [(3, 0.1, "0.1 of 3 samples is none"), (1, 0.9, "leaves none of 1 samples to train on")],
)
def test_a_part_without_samples_is_told(count, validation, message):
    with pytest.raises(DataError, match=message):
        split(SplitConfig(validation=validation), count=count)


def texts_of(data):
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: list(part.table.columns["text"].values) for name, part in parts.items()}


def shared(texts):
    return [t for name in texts for t in set(texts[name]) if sum(t in texts[o] for o in texts) > 1]


@pytest.mark.parametrize(
    ("copies", "total", "note"),
    [
        ("leave", 2225, "98 of 2225 samples are exact copies, 5"),
        ("together", 2225, "98 exact copies in one part with their originals"),
        ("drop", 2127, "98 exact copies left out"),
    ],
)
def test_copied_documents_of_bbc_news(opened, bbc, copies, total, note):
    split = {"validation": 0.1, "test": 0.2, "stratify": True, "copies": copies}
    data = opened({"source": bbc, "split": split})
    texts = texts_of(data)
    assert any(told.startswith(note) for told in data.facts.notes)
    assert sum(data.facts.sizes.values()) == total
    assert data.facts.sizes["test"] == len(texts["test"]) == round(0.2 * total)
    assert data.facts.sizes["validation"] == round(0.1 * total)
    assert bool(shared(texts)) == (copies == "leave")


def test_the_note_counts_the_copies_across_parts(opened, bbc):
    data = opened({"source": bbc, "split": {"validation": 0.1, "test": 0.2}})
    across = len(shared(texts_of(data))) // 2
    told = f" {across} of them across parts; split.copies: together or drop"
    assert any(told in note for note in data.facts.notes)


def test_copies_across_given_parts_are_told(write_csv, opened):
    rows = [["text", "label"], ["a", "x"], ["b", "y"]]
    sources = {part: write_csv(rows, f"{part}.csv") for part in ("train", "test")}
    data = opened(sources)
    assert data.facts.notes == ("2 of 4 samples are exact copies, 2 of them across parts",)
    assert data.facts.sizes == {"train": 2, "test": 2}


def test_copies_in_another_notation_or_format_are_copies_across_parts(write_csv, opened, tmp_path):
    train = write_csv([["x", "label"], ["0.5", "a"], ["2", "b"], ["3", "a"]])
    rows = [{"x": 0.5, "label": "a"}, {"x": 7, "label": "b"}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    parts = {
        "train": train,
        "validation": write_csv([["x", "label"], ["0.50", "a"], ["9", "b"]], "more.csv"),
        "test": {"type": "json", "path": str(tmp_path / "test.json")},
    }
    note = "2 of 7 samples are exact copies, 2 of them across parts"
    assert note in opened({**parts, "inputs": ["x"]}).facts.notes


def test_within_one_source_another_notation_is_no_copy(write_csv, opened):
    # As they are left, kept together and dropped: float32 makes times one that are two.
    cells = ["0.5", "0.50", "1700000000.25", "1700000000.5"]
    source = write_csv([["x", "label"], *([cell, "ab"[n % 2]] for n, cell in enumerate(cells))])
    data = {"source": source, "inputs": ["x"], "split": {"test": 0.5, "copies": "leave"}}
    assert not any("copies" in note for note in opened(data).facts.notes)


@pytest.mark.parametrize("copies", ["leave", "together", "drop"])
def test_copies_with_another_target_are_told(write_csv, opened, copies):
    rows = [[f"text {n}", "ab"[n % 2]] for n in range(20)]
    source = write_csv([["text", "label"], *rows, ["text 0", "b"], ["text 1", "b"]])
    data = opened({"source": source, "split": {"test": 0.5, "copies": copies}})
    told = "1 of 2 exact copies have another target than the sample they repeat"
    assert data.facts.notes[1:] == (told,)


def test_copied_image_files_are_found_whatever_their_name(tmp_path, write_images, opened):
    source = write_images({"a": [(9, 9)] * 10, "b": [(9, 9)] * 10})
    folder = tmp_path / "images" / "a"
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    data = opened({"source": source, "split": {"test": 0.5, "copies": "drop"}})
    assert data.facts.notes == ("1 exact copy left out",)
    assert sum(data.facts.sizes.values()) == 20


def test_stratify_without_classes_is_told(opened):
    data = {"source": {"type": "sklearn", "name": "diabetes"}}
    with pytest.raises(DataError, match="stratify needs classes, the task is 'regression'"):
        opened(data | {"split": {"test": 0.2, "stratify": True}}, "regression")


def test_a_label_that_only_the_test_part_has_is_told(write_csv, opened):
    rows = [["text", "label"], *[[f"t{n}", f"c{n}"] for n in range(10)]]
    with pytest.raises(DataError, match=r"label 'c\d' of the test part is never seen in training"):
        opened({"source": write_csv(rows), "split": {"test": 0.2}})


def test_a_label_that_only_a_given_validation_part_has_is_told(write_csv, opened):
    train = write_csv([["text", "label"], ["t", "a"]])
    validation = write_csv([["text", "label"], ["t", "b"]], "validation.csv")
    with pytest.raises(DataError, match="label 'b' of the validation part is never seen"):
        opened({"train": train, "validation": validation})
