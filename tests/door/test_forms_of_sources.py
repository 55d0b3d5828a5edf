"""Sources as people have them: labels in names, folders of files, patterns, parts of a data set."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import load_predictor
from finetune.config.data import DataConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.prepare import open_data
from finetune.data.readers.row_places import Places
from finetune.data.sources.unlike_files import notes_on_unlike_files
from finetune.data.table import Listed, Table
from finetune.errors import DataError, SelectorError
from finetune.train.after.trained import evaluate_run
from finetune.train.wire import build_trainer

COLOURS = {"red": (255, 0, 0), "sea_green": (0, 200, 100)}
TASK = ClassificationTask(type="classification")
LAYERS = [
    {"type": "Flatten"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


def picture(path, colour, number):
    draw = np.random.default_rng(number)
    noise = draw.integers(-20, 20, (8, 8, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path):
    """Pictures in one folder whose names tell their class, as those of Oxford's pets do."""
    for number in range(24):
        colour = list(COLOURS)[number % 2]
        picture(tmp_path / f"pets/{colour}_{number}.png", colour, number)
    return tmp_path / "pets"


def opened(source, **keys):
    config = DataConfig.model_validate({"source": source, **keys})
    return open_data(config, TASK, seed=0, trust=())


@pytest.fixture
def run(small_config, tmp_path):
    """Train; return the trainer."""

    def train(layers=LAYERS, **data):
        config = small_config(
            model={"layers": layers},
            data=data,
            task={"type": "classification"},
            optimizer={"type": "Adam", "lr": 0.01},
            train={"epochs": 8, "batch_size": 6},
        )
        trainer = build_trainer(config, tmp_path / "run")
        trainer.fit()
        return trainer

    return train


NAMES = {"type": "imagefolder", "label": {"regex": r"(.+)_[0-9]+\.png"}}


def test_the_name_of_an_image_tells_its_label(run, pets, predict, tmp_path):
    trainer = run(source={**NAMES, "path": str(pets)}, split={"validation": 0.25})
    assert trainer.progress.metrics["validation/accuracy"] == 1
    picture(tmp_path / "new/x.png", "sea_green", 99)
    assert predict(str(tmp_path / "new"))[0] == ["sea_green"]
    assert evaluate_run(tmp_path / "run", source=str(pets))["accuracy"] == 1
    assert load_predictor(tmp_path / "run")([tmp_path / "new/x.png"])[0].label == "sea_green"


def test_texts_and_recordings_may_have_their_label_in_the_name_too(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("good-1.txt", "bad-1.txt", "in/good-2.txt"):
        (tmp_path / name).write_text(name)
    source = {"type": "textfolder", "path": str(tmp_path), "label": {"regex": "^([a-z]+)-"}}
    facts = opened(source).facts
    assert (facts.classes, facts.sizes) == (("bad", "good"), {"train": 3})


def test_names_without_a_label_are_counted_and_one_is_shown(pets):
    picture(pets / "unnamed.png", "red", 3)
    with pytest.raises(DataError, match=r"no label in 1 of 25 names, such as 'unnamed\.png'"):
        opened({**NAMES, "path": str(pets)})


@pytest.mark.parametrize(
    ("expression", "said"),
    [("(a", "not a regular expression"), ("abc", "one group"), ("(a)(b)", "one group")],
)
def test_an_expression_that_tells_no_label_is_refused_in_the_config(expression, said):
    source = {"type": "imagefolder", "path": "x", "label": {"regex": expression}}
    with pytest.raises(ValueError, match=said):
        DataConfig.model_validate({"source": source})


def test_an_expression_without_end_is_stopped(tmp_path):
    (tmp_path / f"{'a' * 60}.txt").write_text("x")
    label = {"regex": "^((?:a|a)+)[bc]"}
    source = {"type": "textfolder", "path": str(tmp_path), "label": label}
    with pytest.raises(SelectorError, match="too slow"):
        opened(source)


def test_a_flat_folder_is_refused_with_the_key_that_reads_it(pets):
    with pytest.raises(DataError, match="has no subfolders") as caught:
        opened({"type": "imagefolder", "path": str(pets)})
    assert "label: {regex: ...}" in caught.value.hint


def test_names_in_a_table_may_be_relative_to_another_folder(run, pets, predict, tmp_path):
    (tmp_path / "lists").mkdir()
    rows = [f"{f.name},{f.name.rpartition('_')[0]}" for f in sorted(pets.iterdir())]
    table = tmp_path / "lists/t.csv"
    table.write_text("\n".join(["image,label", *rows]) + "\n")
    source = {"type": "csv", "path": str(table), "folder": str(pets)}
    trainer = run(source=source, split={"validation": 0.25})
    assert trainer.progress.metrics["validation/accuracy"] == 1
    assert predict(str(table))[0] == [row.rpartition(",")[2] for row in rows]
    picture(tmp_path / "new/x.png", "red", 99)
    (tmp_path / "new/t.csv").write_text("image\nx.png\n")
    assert predict(str(tmp_path / "new/t.csv"))[0] == ["red"]


@pytest.mark.parametrize("name", ["../out.png", "/etc/hostname"])
def test_a_name_must_not_leave_that_folder(pets, tmp_path, name):
    picture(tmp_path / "out.png", "red", 0)
    (tmp_path / "t.csv").write_text(f"image,label\n{name},a\n{name},b\n")
    with pytest.raises(DataError, match="leaves the folder"):
        opened({"type": "csv", "path": str(tmp_path / "t.csv"), "folder": str(pets)})


def parts(folder, ending, count=3):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        rows = [{"x": 10 * number + n, "label": "ab"[n % 2]} for n in range(4)]
        text = "\n".join(["x,label", *(f"{r['x']},{r['label']}" for r in rows)])
        if ending != "csv":
            text = "\n".join(map(json.dumps, rows))
        (folder / f"part-{number:02}.{ending}").write_text(text + "\n")
    (folder / f"other.{ending}").write_text("y\n1\n" if ending == "csv" else '{"y": 1}\n')


@pytest.mark.parametrize(("kind", "ending"), [("csv", "csv"), ("jsonl", "jsonl"), ("json", "json")])
def test_a_pattern_reads_its_files_in_order_and_says_how_many(tmp_path, kind, ending):
    parts(tmp_path / "in", ending)
    source = {"type": kind, "path": str(tmp_path / f"in/part-*.{ending}")}
    made = opened(source, inputs=["x"], target="label")
    cells = made.train.table.columns["x"]
    assert [int(cells[row]) for row in range(len(cells))] == [
        *range(4),
        *range(10, 14),
        *range(20, 24),
    ]
    note = next(note for note in made.facts.notes if "in sorted order" in note)
    assert note.startswith("3 files of ")
    assert note.endswith(f"'part-00.{ending}' to 'part-02.{ending}'")


def test_a_pattern_that_nothing_is_called_by_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no file is called 'p-\*\.csv' in "):
        opened({"type": "csv", "path": str(tmp_path / "p-*.csv")})
    with pytest.raises(DataError, match="no such file"):
        opened({"type": "csv", "path": str(tmp_path / "nowhere/p-*.csv")})


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("**.csv", "a folder reads all tables below it"),
        ("**", "a folder reads all tables below it"),
        ("in/**/*.csv", "a folder reads all tables below it"),
        ("in/part**.csv", "a folder reads all tables below it"),
        ("*/part-00.csv", "only the last part of a path may be a pattern"),
    ],
)
def test_a_pattern_of_folders_is_refused_with_the_remedy(tmp_path, pattern, hint):
    parts(tmp_path / "in", "csv")
    with pytest.raises(DataError, match="no such file") as caught:
        opened({"type": "csv", "path": str(tmp_path / pattern)})
    assert hint in caught.value.hint


def test_a_file_that_is_really_called_like_a_pattern_is_read(tmp_path):
    (tmp_path / "a[1].csv").write_text("x,label\n1,a\n2,b\n")
    assert opened({"type": "csv", "path": str(tmp_path / "a[1].csv")}).facts.sizes == {"train": 2}


def test_a_link_that_a_pattern_names_must_not_leave_the_folder(tmp_path):
    parts(tmp_path / "in", "csv")
    (tmp_path / "secret.csv").write_text("x,label\n1,a\n")
    (tmp_path / "in/part-99.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(DataError, match="leaves the folder"):
        opened({"type": "csv", "path": str(tmp_path / "in/part-*.csv")})


def test_parts_of_a_data_set_of_the_hub_are_parts_of_a_run(run, predict, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"x": [float(n) for n in range(40)], "label": ["ab"[n >= 20] for n in range(40)]}
    whole = datasets.Dataset.from_dict(rows)
    hub = {"train": whole, "validation": whole.select(range(0, 40, 4)), "test": whole}
    datasets.DatasetDict(hub).save_to_disk(str(tmp_path / "hub"))

    def part(name):
        return {"type": "huggingface", "path": str(tmp_path / "hub"), "part": name}

    steps = [{"type": "standardize", "columns": ["x"]}, {"type": "stack"}]
    keys = {"inputs": ["x"], "target": "label", "transforms": steps}
    parts = {"train": part("train"), "validation": part("validation"), "test": part("test")}
    trainer = run(LAYERS[1:], **parts, **keys)
    sizes = json.loads((tmp_path / "run/data.json").read_text())["sizes"]
    assert sizes == {"train": 40, "validation": 10, "test": 40}
    assert trainer.progress.metrics["test/accuracy"] > 0.8
    (tmp_path / "new.csv").write_text("x\n0\n39\n")
    assert predict(str(tmp_path / "new.csv"))[0] == ["a", "b"]
    with pytest.raises(DataError, match="no part 'valid'; there are: train, validation, test"):
        open_data(
            DataConfig.model_validate({**parts, **keys, "test": part("valid")}),
            TASK,
            seed=0,
            trust=(),
        )


PARTS = {
    "an input": ("x,label\n1,a\n2,b\n", "x,label\n3,a\nfew,b\n", "'x'", "'few'"),
    "the target": ("x,label\n1,0\n2,1\n", "x,label\n3,0\n4,one\n", "'label'", "'one'"),
    "words in the first": ("x,label\nfew,a\n2,b\n", "x,label\n3,a\n,b\n", "'x'", "'few'"),
}


@pytest.mark.parametrize("least", [0, 1 << 30], ids=["mapped", "in memory"])
@pytest.mark.parametrize("case", PARTS)
def test_a_column_of_numbers_in_one_file_and_words_in_another_is_told(
    case, least, tmp_path, monkeypatch
):
    monkeypatch.setattr("finetune.data.sources.large_tables.LEAST_BYTES", least)
    *parts, column, cell = PARTS[case]
    for number, text in enumerate(parts, 1):
        (tmp_path / f"part-{number}.csv").write_text(text)
    source = {"type": "csv", "path": str(tmp_path / "part-*.csv")}
    keys = {"inputs": ["x"], "target": "label"}
    (note,) = [note for note in opened(source, **keys).facts.notes if "numbers alone" in note]
    file, number = (1, 2) if case == "words in the first" else (2, 1)
    assert note.startswith(f"column {column} is read as text: {tmp_path}/part-{number}.csv holds ")
    assert f"{cell} in row {1 if file == 1 else 2} of {tmp_path}/part-{file}.csv is none" in note


ALIKE = {
    "words in both": ("x,label\na b,p\n", "x,label\n1,q\nc,p\n"),
    "numbers in both": ("x,label\n1,p\n", "x,label\n1.5,q\n2,p\n"),
    "one of them empty": ("x,label\nword,p\nb,q\n", "x,label\n,q\n,p\n"),
}


@pytest.mark.parametrize("case", ALIKE)
def test_columns_that_are_alike_in_all_files_are_not_told(case, tmp_path):
    for number, text in enumerate(ALIKE[case], 1):
        (tmp_path / f"part-{number}.csv").write_text(text)
    source = {"type": "csv", "path": str(tmp_path / "part-*.csv")}
    notes = opened(source, inputs=["x"], target="label").facts.notes
    assert not [note for note in notes if "numbers alone" in note]


def test_a_look_at_many_files_does_not_begin_with_the_first_cell_for_each_of_them():
    skipped = []

    class Cells(list):
        def __iter__(self):
            for cell in super().__iter__():
                skipped.append(cell)
                yield cell

    words = Listed(Cells(["word"] * 300), "cells")
    places = Places(tuple(f"{n}.csv" for n in range(100)), tuple(range(0, 300, 3)))
    table = Table({"x": words}, torch.arange(300), "all.csv", places=places)
    assert notes_on_unlike_files(table, ["x"], {"x": Listed([], "text")}) == []
    assert len(skipped) <= len(words)


def test_digits_that_are_tokenized_are_text_in_every_file(tmp_path):
    (tmp_path / "part-1.csv").write_text("x,label\n1,p\n2,q\n")
    (tmp_path / "part-2.csv").write_text("x,label\nword,p\n2,q\n")
    source = {"type": "csv", "path": str(tmp_path / "part-*.csv")}
    tokens = {"type": "tokenize", "column": "x", "tokenizer": "package:none"}
    notes = opened(source, inputs=["x"], target="label", transforms=[tokens]).facts.notes
    assert not [note for note in notes if "numbers alone" in note]
