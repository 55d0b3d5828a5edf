"""A folder of tables is read whole, alike in training and prediction; what is left out is told."""

import json

import pytest

from finetune.config.data import DataConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.opening import open_data
from finetune.errors import DataError

CSV = "text,label\n{0} one,a\n{0} two,b\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make files by name below the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(**files):
        for name, content in files.items():
            path = tmp_path / "tables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


def opened(kind="csv", **more):
    config = DataConfig.model_validate({"source": {"type": kind, "path": "tables", **more}})
    return open_data(config, ClassificationTask(type="classification"), seed=0, trust=())


def texts(found):
    return list(found.train.table.columns["text"].values)


def test_tables_of_folders_below_are_read_and_told_in_training_as_in_prediction(folder):
    folder(**{n: CSV.format(n) for n in ("b.csv", "2024/may.csv", "2024/q3/july.csv.gz.csv")})
    found = opened()
    told = "2 of 3 tables of 'tables' are read from folders below it, such as 'tables/2024/may.csv'"
    assert told in found.facts.notes
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "tables"}})
    parts = read_incoming("tables", config, {"text": "text"}, None)
    assert sorted(text for part in parts for text in part.columns["text"]) == sorted(texts(found))
    assert len(texts(found)) == 6


def test_a_cell_of_a_table_below_is_named_by_its_own_file(folder):
    folder(**{"a.csv": CSV.format("x"), "more/b.csv": "text,label\ngood,a\nbad,\n"})
    with pytest.raises(DataError, match=r"in row 2 of tables/more/b.csv"):
        opened()


def test_other_files_of_the_folder_are_counted_and_hidden_ones_are_not(folder):
    folder(
        **{"a.csv": CSV.format("x"), "readme.md": "x", "old/notes.txt": "x", ".git/config.csv": "x"}
    )
    assert "2 files of 'tables' passed over: 1 .txt, 1 .md" in opened().facts.notes[0]


@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        (("train.csv", "test.csv"), "tables/train.csv", "tables/test.csv"),
        (("Train/x.csv", "val/x.csv", "val/y.csv"), "tables/Train", "tables/val"),
    ],
    ids=["files", "folders"],
)
def test_tables_that_are_called_like_parts_are_told_with_the_config_to_write(
    folder, names, first, second
):
    folder(**{name: CSV.format(name) for name in names})
    note = next(note for note in opened().facts.notes if "are read as one" in note)
    assert f"train: {{type: csv, path: {first}}}" in note
    assert f"path: {second}}}" in note
    assert note.endswith("in place of source and split")


@pytest.mark.parametrize("names", [("train.csv",), ("train.csv", "2025.csv"), ("a.csv", "b.csv")])
def test_tables_of_other_names_are_no_parts(folder, names):
    folder(**{name: CSV.format(name) for name in names})
    assert not any("are parts" in note for note in opened().facts.notes)


def test_a_folder_with_no_table_at_any_depth_is_refused(folder):
    folder(**{"deep/readme.md": "x"})
    with pytest.raises(DataError, match="is a folder and holds none"):
        opened()


def test_a_link_below_the_folder_that_leaves_it_is_refused(folder, tmp_path):
    folder(**{"a.csv": CSV.format("x")})
    (tmp_path / "secret.csv").write_text(CSV.format("secret"))
    (tmp_path / "tables" / "in").mkdir()
    (tmp_path / "tables" / "in" / "b.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(DataError, match="leaves the folder"):
        opened()


def test_json_lines_of_folders_below_are_read_as_well(folder):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder(**{"a.jsonl": lines, "in/b.json": json.dumps(rows, indent=1)})
    assert texts(opened("jsonl")) == ["x", "y", "x", "y"]
