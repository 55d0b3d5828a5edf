"""Messages about labels, cells and keys name the remedy that helps, and how many are at fault."""

import pytest

from finetune.errors import DataError

CLASSIFY = {"type": "classification"}
SPLIT = {"validation": 0.2, "test": 0.2}
FOLDS = {"test": 0.2, "folds": 4, "fold": 0}
CONFIG = """\
model: {layers: [{name: head, type: Linear, out_features: classes}]}
data:
  source: {type: csv, path: d.csv}
  inputs: [u]
  target: label
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def opened(tmp_path, small_config):
    """Open a table of a column x and a label y as `plan` and `train` do."""
    from finetune.data.prepare import open_data, prepare_data
    from finetune.models.preprocessing import Preprocessing

    def open_(rows, task=CLASSIFY, **keys):
        (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{row}\n" for row in rows))
        source = {"type": "csv", "path": str(tmp_path / "t.csv")}
        data = {"source": source, "inputs": ["x"], "target": "y", **keys}
        config = small_config(data=data, task=task)
        raw = open_data(config.data, config.task, seed=0, trust=())
        return prepare_data(raw, config.data, Preprocessing(None, None), seed=0, trust=())

    return open_


def labels(rare):
    return [f"{n},{'ab'[n % 2]}" for n in range(40)] + [f"{n},{word}" for n, word in rare]


@pytest.mark.parametrize(
    "split", [SPLIT | {"stratify": True}, {"test": 0.2, "folds": 4, "fold": 0}]
)
@pytest.mark.parametrize(
    ("rare", "remedy"),
    [
        ([(1, "other")], "leave its row out of the data, or give it the label of another class"),
        ([(1, "c"), (2, "c")], "leave its 2 rows out of the data, or give them the label of"),
        ([(1, "A ")], "data.labels: {fold: true} makes them one label"),
    ],
    ids=["one sample", "two samples", "another spelling"],
)
def test_a_class_with_fewer_samples_than_parts_is_told_with_what_helps(opened, rare, remedy, split):
    told = set()
    for seed in range(12):
        try:
            opened(labels(rare), split=split | {"seed": seed})
        except DataError as error:
            told.add(str(error))
    assert told
    assert all("too few for 3 parts" in each and remedy in each for each in told)
    assert not any("stratify" in each.splitlines()[1] for each in told)


def test_without_stratify_a_rare_class_is_not_sent_to_stratify(opened):
    told = set()
    for seed in range(12):
        try:
            opened(labels([(1, "other")]), split=SPLIT | {"seed": seed})
        except DataError as error:
            told.add(str(error))
    assert told
    assert all("it has 1 sample, too few for 3 parts\n    leave its row out" in t for t in told)


def test_a_class_that_is_no_rarer_than_parts_is_sent_to_stratify(opened):
    rare = [(n, "other") for n in range(3)]
    told = set()
    for seed in range(300):
        try:
            opened(labels(rare), split={"validation": 0.4, "test": 0.4, "seed": seed})
        except DataError as error:
            told.add(str(error))
    assert any("split: {stratify: true} gives every part" in each for each in told)


REGRESS = {"type": "regression"}
CELLS = {
    "labels": (["1,a", "2,", "3,b", "4,", "5,"], CLASSIFY, "'y' has no label in row 2", 2, "label"),
    "numbers": (
        ["1,a", ",b", "3,a", ",b"],
        CLASSIFY,
        "'x' has no number in row 2",
        1,
        "{type: fill",
    ),
    "targets": (["1,1", "2,", "3,"], REGRESS, "'y' has no number in row 2", 1, "leave such rows"),
    "one alone": (["1,a", ",b"], CLASSIFY, "'x' has no number in row 2", 0, "columns: [x]"),
}


@pytest.mark.parametrize(("rows", "task", "told", "others", "remedy"), CELLS.values(), ids=CELLS)
def test_cells_at_fault_are_counted_and_told_with_the_remedy(
    opened, rows, task, told, others, remedy
):
    with pytest.raises(DataError, match=told) as caught:
        opened(rows, task)
    more = f" and {others} more row" + ("s" if others > 1 else "")
    assert (more in caught.value.message) == (others > 0)
    assert remedy in caught.value.hint
    if task is REGRESS:
        assert "fill, columns" not in caught.value.hint


def test_values_missing_in_json_are_counted(tmp_path, small_config):
    from finetune.data.prepare import open_data

    rows = ['{"x": "a", "y": 1}', '{"y": 2}', '{"y": 1}', '{"x": null, "y": 2}']
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    source = {"type": "jsonl", "path": str(tmp_path / "t.jsonl")}
    config = small_config(data={"source": source, "inputs": ["x"], "target": "y"}, task=CLASSIFY)
    with pytest.raises(DataError, match=r"no value in row 2 of .* and 2 more rows") as caught:
        open_data(config.data, config.task, seed=0, trust=())
    assert "{type: fill}" in caught.value.hint


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("7,450", "7,450 may mean 7450 or 7.450: write no separators"),
        ("1,234,567", "1,234,567 seems to mean 1234567"),
        ("1 200", "1 200 seems to mean 1200"),
        ("9'300.5", "9'300.5 seems to mean 9300.5"),
        ("3,5", "3.5, not 3,5"),
    ],
)
def test_a_number_with_separators_is_explained_by_itself(opened, cell, told):
    with pytest.raises(DataError) as caught:
        opened([f'"{cell}",a', "2,b", "3,a"])
    assert told in caught.value.hint


def test_unknown_labels_are_counted_each_with_a_row(tmp_path, opened):
    test = tmp_path / "other.csv"
    test.write_text("x,y\n1,a\n2,new\n3,strange\n4,new\n5,b\n")
    parts = {"train": {"type": "csv", "path": str(tmp_path / "t.csv")}}
    with pytest.raises(DataError) as caught:
        opened(labels([]), source=None, **parts, test={"type": "csv", "path": str(test)})
    assert "unknown are 'new' (2, first in row 2 of " in caught.value.message
    assert "'strange' (1, in row 3 of " in caught.value.message
    assert caught.value.message.endswith("training has 'a', 'b'")


@pytest.mark.parametrize("step", ["ToTensor", "ToFloat"])
def test_a_step_that_only_scales_bytes_is_told_to_be_left_out(fault, step):
    told = fault(f"data.transforms=[{{type: {step}}}]")
    assert f"no transform '{step}'" in told
    assert "leave it out: images of bytes become float32 from 0 to 1 by themselves" in told
    assert "{type: ToDtype, dtype: float32, scale: true}" in told


@pytest.mark.parametrize("key", ["text", "text_column"])
def test_a_column_named_in_the_source_is_told_with_its_key(fault, key):
    told = fault(f"data.source.{key}=message")
    assert "data.inputs: ['message']" in told


def test_a_label_named_in_a_csv_source_is_told_to_be_the_target(fault):
    assert "'data.target'" in fault("data.source.label=category")


def test_keys_known_in_a_csv_source_begin_with_those_of_a_csv(fault):
    told = fault("data.source.zzz=1")
    assert "known here: type, path, separator, quote, encoding, folder, missing" in told


def test_an_encoding_alone_belongs_to_the_source_first(fault):
    assert "it belongs to 'data.source.encoding'" in fault("encoding=latin-1")


def test_a_csv_without_names_of_columns_is_told_to_lack_them(tmp_path, small_config):
    from finetune.data.prepare import open_data

    (tmp_path / "t.csv").write_text("The parcel is late,a\nAll is well,b\n")
    source = {"type": "csv", "path": str(tmp_path / "t.csv")}
    config = small_config(data={"source": source, "inputs": ["message"], "target": "a"})
    with pytest.raises(DataError, match="no column 'message'") as caught:
        open_data(config.data, config.task, seed=0, trust=())
    assert "the first line of a csv names its columns" in caught.value.hint
