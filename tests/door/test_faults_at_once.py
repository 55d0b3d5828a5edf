"""Faults of several columns are told together, not one a try."""

import json

import pytest

from finetune.config.data import DataConfig
from finetune.config.task_keys import RegressionTask
from finetune.data.prepare import open_data, prepare_data
from finetune.errors import FinetuneError, SeveralFaultsError
from finetune.models.preprocessing import Preprocessing
from finetune.train.build import build_parts

ROWS = 8
STACK = [{"type": "stack"}]


def csv_of(**columns):
    lines = zip(*columns.values(), strict=True)
    return ",".join(columns) + "\n" + "".join(",".join(map(str, line)) + "\n" for line in lines)


def json_of(**columns):
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


NUMBERS = [*range(ROWS)]
WORDS = [1, 2, "few", *range(3, ROWS)]
GAPS = [1, 2, "", *range(3, ROWS)]
NOTHING = [1, 2, None, *range(3, ROWS)]
MIXED = ["one", *range(1, ROWS)]
SCALED = [{"type": "standardize", "columns": ["a", "b"]}, *STACK]
CASES = {
    "columns that are not there": (
        csv_of(a=NUMBERS, y=NUMBERS),
        {"inputs": ["aa", "bb"], "target": "yy"},
        ["no column 'aa'", "no column 'bb'", "no column 'yy'"],
    ),
    "words that a stack takes": (
        csv_of(a=WORDS, b=WORDS, y=NUMBERS),
        {"transforms": STACK},
        ["column 'a' holds 'few' in row 3", "column 'b' holds 'few' in row 3"],
    ),
    "words that a fitted step takes": (
        csv_of(a=WORDS, b=WORDS, y=NUMBERS),
        {"transforms": SCALED},
        ["column 'a' holds 'few' in row 3", "column 'b' holds 'few' in row 3"],
    ),
    "empty cells": (
        csv_of(a=GAPS, b=GAPS, y=NUMBERS),
        {"transforms": STACK},
        ["column 'a' has no number in row 3", "column 'b' has no number in row 3"],
    ),
    "values that are missing": (
        json_of(a=NOTHING, b=NOTHING, y=NOTHING),
        {"transforms": STACK},
        ["'a' has no value in row 3", "'b' has no value in row 3", "'y' has no value in row 3"],
    ),
    "columns behind another separator, once": (
        csv_of(a=NUMBERS, b=NUMBERS, y=NUMBERS).replace(",", ";"),
        {},
        ["no column 'a' and 2 more; there are: a;b;y"],
    ),
    "words, gaps and a gap in the target": (
        csv_of(a=GAPS, b=WORDS, y=GAPS),
        {"transforms": STACK},
        ["column 'a' has no number in row 3", "'b' holds 'few' in row 3", "'y' has no number"],
    ),
    "words that no step takes, and a gap": (
        csv_of(a=GAPS, b=WORDS, y=WORDS),
        {},
        ["column 'a' has no number in row 3", "'b' holds 'few' in row 3", "'y' holds 'few'"],
    ),
    "words behind a step of other columns": (
        csv_of(a=GAPS, b=WORDS, y=NUMBERS),
        {"transforms": [{"type": "fill", "columns": ["a"], "with": "median"}, *SCALED]},
        ["'b' holds 'few' in row 3 of"],
    ),
    "a gap and a mixture": (
        json_of(a=NOTHING, b=MIXED, y=NUMBERS),
        {"transforms": STACK},
        ["column 'a' has no value in row 3", "column 'b' mixes text and numbers"],
    ),
}


def prepared(config):
    knows = Preprocessing(None, None)
    task = RegressionTask(type="regression")
    opened = open_data(config, task, seed=0, trust=(), preprocessing=knows)
    return prepare_data(opened, config, knows, seed=0, trust=())


@pytest.mark.parametrize("case", CASES)
def test_faults_of_several_columns_are_told_at_once(case, tmp_path):
    text, keys, told = CASES[case]
    is_json = text.startswith("{")
    path = tmp_path / ("t.jsonl" if is_json else "t.csv")
    path.write_text(text)
    source = {"type": "jsonl" if is_json else "csv", "path": str(path)}
    config = DataConfig.model_validate(
        {"source": source, "inputs": ["a", "b"], "target": "y"} | keys
    )
    with pytest.raises(FinetuneError) as caught:
        prepared(config)
    assert isinstance(caught.value, SeveralFaultsError) is (len(told) > 1)
    lines = [line for line in str(caught.value).splitlines() if not line.startswith("    ")]
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        assert part in line


def opened_parts(tmp_path, train, validation, **keys):
    """Open training and validation samples from texts of csv files."""
    parts = {"train": train, "validation": validation}
    for part, text in parts.items():
        (tmp_path / f"{part}.csv").write_text(text)
    sources = {part: {"type": "csv", "path": str(tmp_path / f"{part}.csv")} for part in parts}
    config = DataConfig.model_validate({**sources, "inputs": ["a"], "target": "y", **keys})
    knows = Preprocessing(None, None)
    return open_data(
        config, RegressionTask(type="regression"), seed=0, trust=(), preprocessing=knows
    )


def test_digits_and_an_empty_cell_are_text_where_training_has_text(tmp_path):
    data = opened_parts(
        tmp_path,
        csv_of(a=["two", "one", "three"], y=[1, 2, 3]),
        csv_of(a=["5", '""', "7"], y=[1, 2, 3]),
        transforms=[{"type": "tokenize", "tokenizer": "none"}],
    )
    assert list(data.validation.table.columns["a"].values) == ["5", "", "7"]


def test_words_in_validation_are_left_to_its_own_steps(tmp_path):
    texts = csv_of(a=[1, 2, 3], y=[1, 2, 3]), csv_of(a=[1, "two", 3], y=[1, 2, 3])
    with pytest.raises(FinetuneError, match="'a' holds 'two' in row 2"):
        opened_parts(tmp_path, *texts, transforms=STACK)
    data = opened_parts(tmp_path, *texts, transforms=STACK, evaluation_transforms=[])
    assert list(data.validation.table.columns["a"].values) == ["1", "two", "3"]


NETWORKS = {
    "weights": [
        {"name": "body", "type": "Linear", "out_features": 3, "weights": {"path": "none.pt"}}
    ],
    "architecture": [
        {"name": "a", "type": "torchvision", "architecture": "resnet19", "pretrained": False}
    ],
    "folder": [{"name": "a", "type": "transformers", "path": "./none", "output": "mean"}],
    "two": [
        {"name": "a", "type": "torchvision", "architecture": "resnet19", "pretrained": False},
        {"name": "b", "type": "torchvision", "architecture": "vgg12", "pretrained": False},
    ],
}
OF_NETWORKS = {
    "weights": ["no weights file"],
    "architecture": ["no network 'resnet19'"],
    "folder": ["no folder 'none'"],
    "two": ["no network 'resnet19'", "no network 'vgg12'"],
}


def lines_of(config):
    with pytest.raises(FinetuneError) as caught:
        build_parts(config)
    return [line for line in str(caught.value).splitlines() if not line.startswith("    ")]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("data", ["no file", "no column", "two files", "nothing"])
def test_what_network_and_data_lack_is_told_at_once(small_config, tmp_path, network, data):
    there = tmp_path / "t.csv"
    there.write_text(csv_of(a=NUMBERS, y=NUMBERS))
    one, gone = ({"type": "csv", "path": str(path)} for path in (there, tmp_path / "gone.csv"))
    sources, told = {
        "no file": ({"source": gone}, ["gone.csv"]),
        "no column": ({"source": one, "inputs": ["b"]}, ["no column 'b'"]),
        "two files": ({"train": gone, "validation": gone, "test": one}, ["gone.csv", "gone.csv"]),
        "nothing": ({"source": one}, []),
    }[data]
    keys = {"inputs": ["a"], "target": "y"} | sources
    config = small_config(data=keys, model={"layers": NETWORKS[network]})
    lines = lines_of(config)
    expected = [*OF_NETWORKS[network], *told]
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line


def test_a_missing_tokenizer_and_a_missing_column_are_told_at_once(small_config, tmp_path):
    (tmp_path / "t.csv").write_text(csv_of(a=["x"] * ROWS, y=NUMBERS))
    source = {"type": "csv", "path": str(tmp_path / "t.csv")}
    step = {"type": "tokenize", "tokenizer": str(tmp_path / "words")}
    data = {"source": source, "inputs": ["b"], "target": "y", "transforms": [step]}
    lines = lines_of(small_config(data=data))
    assert len(lines) == 2
    assert "cannot load the tokenizer" in lines[0]
    assert "no column 'b'" in lines[1]


def test_one_cause_that_two_checks_meet_is_told_once(small_config):
    source = {"type": "import", "path": "my_door_source:make"}
    data = {"source": source, "inputs": ["a"], "target": "y"}
    [line] = lines_of(small_config(data=data))
    assert "'my_door_source', which is not trusted" in line
