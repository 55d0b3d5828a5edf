"""Folders and tables of images: what is passed over is told, messages name folder and remedy."""

from io import StringIO

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from finetune.config.data import DataConfig
from finetune.config.task_keys import Task
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.prepare import open_data
from finetune.data.short_values import in_short
from finetune.errors import DataError

CLASSES = TypeAdapter(Task).validate_python({"type": "classification"})


def opened(**data):
    return open_data(DataConfig.model_validate(data), CLASSES, seed=0, trust=())


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Return a function that saves a small image at a path below the current folder."""
    monkeypatch.chdir(tmp_path)

    def put_(path, form="PNG"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / path, form)

    return put_


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *[("x.jfif", "JPEG"), ("x.JPG", "JPEG"), ("x", "PNG"), ("x.avif", "JPEG")],
        *[("IMG.2024", "WEBP"), ("x.PNG", "PNG"), ("x.image", "TIFF"), ("x.jp2", "JPEG2000")],
    ],
)
def test_an_image_is_known_by_any_ending_or_by_its_content(put, tmp_path, name, form):
    put(f"data/a/{name}", form)
    put("data/b/y.png")
    data = opened(source={"type": "imagefolder", "path": "data"})
    assert len(data.train.table) == 2
    assert data.facts.notes == ()
    kinds = {"image": "image"}
    config = DataConfig.model_validate({"source": {"type": "imagefolder", "path": "data"}})
    [part] = read_incoming("data", config, kinds, StringIO())
    assert part.names == [f"data/a/{name}", "data/b/y.png"]


def test_copies_in_a_hidden_folder_of_a_class_are_no_samples(put):
    for name in ("a/0.png", "a/.ipynb_checkpoints/0-checkpoint.png", "b/1.png", "b/more/2.png"):
        put(f"data/{name}")
    data = opened(source={"type": "imagefolder", "path": "data"})
    assert len(data.train.table) == 3
    assert data.facts.notes == ()


def test_files_that_are_passed_over_are_counted_by_ending(put, tmp_path):
    put("data/a/0.png")
    put("data/b/1.png")
    for name in ("a/x.txt", "b/y.txt", "a/z.dat", "a/noise", "readme.md", "a/.hidden"):
        (tmp_path / "data" / name).write_bytes(b"no image")
    [note] = opened(source={"type": "imagefolder", "path": "data"}).facts.notes
    counted = "2 .txt, 1 .md, 1 without an ending, 1 .dat"
    assert note == f"5 files of 'data' passed over: {counted}, such as 'data/readme.md'"


def test_a_class_folder_without_images_is_told(put, tmp_path):
    put("data/a/0.png")
    put("data/b/1.png")
    (tmp_path / "data" / "owl").mkdir()
    [note] = opened(source={"type": "imagefolder", "path": "data"}).facts.notes
    assert "without a sample, no class is made of it: 'owl'" in note


@pytest.mark.parametrize(
    "names", [("train", "val"), ("Training", "test"), ("train", "valid", "test")]
)
def test_folders_of_parts_given_as_classes_are_told_with_the_config_to_write(put, names):
    for name in names:
        put(f"root/{name}/cat/0.png")
        put(f"root/{name}/dog/1.png")
    [note] = opened(source={"type": "imagefolder", "path": "root"}).facts.notes
    written = yaml.safe_load(note[note.index("{") : note.rindex("}") + 1])
    assert opened(**written).facts.classes == ("cat", "dog")


def test_folders_of_parts_of_texts_are_told_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train/a/0.txt", "test/b/1.txt"):
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        (tmp_path / "root" / name).write_text("x")
    [note] = opened(source={"type": "textfolder", "path": "root"}).facts.notes
    assert "test: {type: textfolder, path: root/test}" in note


def test_a_link_out_of_the_folder_is_not_opened_to_see_what_it_is(put, tmp_path):
    put("data/a/0.png")
    put("data/b/1.png")
    put("elsewhere")
    (tmp_path / "data/a/link").symlink_to(tmp_path / "elsewhere")
    data = opened(source={"type": "imagefolder", "path": "data"})
    assert len(data.train.table) == 2
    assert "1 file of 'data' passed over: 1 without an ending" in data.facts.notes[0]


def write(path, *rows):
    path.write_text("".join(f"{','.join(row)}\n" for row in rows))
    return {"type": "csv", "path": path.name}


def test_image_paths_in_a_column_of_another_name_are_read_as_images(put, tmp_path):
    put("im/0.png")
    put("im/1.JPG", "JPEG")
    source = write(tmp_path / "t.csv", ("file", "y"), ("im/0.png", "a"), ("im/1.JPG", "b"))
    facts = opened(source=source, inputs=["file"], target="y").facts
    assert facts.kinds == {"file": "image"}
    assert "column 'file': its texts name image files" in facts.notes[0]


def test_texts_that_only_look_like_image_paths_stay_texts(put, tmp_path):
    source = write(tmp_path / "t.csv", ("file", "y"), ("see 0.png", "a"), ("1.png", "b"))
    assert opened(source=source, inputs=["file"], target="y").facts.kinds == {"file": "text"}


def test_a_missing_image_is_named_with_its_row_and_the_folder_it_is_relative_to(put, tmp_path):
    put("im/0.png")
    source = write(tmp_path / "t.csv", ("image", "label"), ("im/0.png", "a"), ("im/9.png", "b"))
    with pytest.raises(DataError, match=r"no such image file 'im/9\.png', which row 2") as caught:
        opened(source=source)
    assert caught.value.hint == f"names are relative to the folder {str(tmp_path)!r}"
    write(tmp_path / "new.csv", ("image",), ("9.png",))
    config = DataConfig.model_validate({"source": source})
    with pytest.raises(DataError, match=r"no such image file '9\.png'") as caught:
        read_incoming("new.csv", config, {"image": "image"}, StringIO())
    assert caught.value.where == "new.csv:1"
    assert caught.value.hint == f"names are relative to the folder {str(tmp_path)!r}"


def test_a_column_of_numbers_that_a_step_takes_for_images_is_told_its_own_step(put, tmp_path):
    source = write(tmp_path / "t.csv", ("rooms", "label"), ("2", "a"), ("3.5", "b"))
    steps = [{"type": "Normalize", "mean": [0.5], "std": [0.5]}]
    with pytest.raises(DataError, match="no such image file '2', which row 1") as caught:
        opened(source=source, inputs=["rooms"], target="label", transforms=steps)
    assert "a column of numbers is brought to one scale by standardize" in caught.value.hint


def test_a_name_that_leaves_the_folder_is_told_with_what_it_is_relative_to(put, tmp_path):
    put("im/a_0.jpg", "JPEG")
    source = write(tmp_path / "t.csv", ("image", "label"), ("a_0.jpg", "a"))
    with pytest.raises(DataError, match="and lies in 'im'") as caught:
        opened(source=source | {"within": "im"})
    assert "write 'im/a_0.jpg', the path from the folder of the table" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\x89PNG" * 1000, "4,000 bytes"),
        ({"bytes": b"x" * 70_000, "path": None}, "a mapping of 'bytes', 'path'"),
        (np.zeros((3, 200, 200)), "ndarray of shape (3, 200, 200)"),
        (Image.new("RGB", (9, 9)), "Image"),
        (DataConfig, "DataConfig"),
        ([0.5] * 10_000, "a list of 10,000"),
        ("x" * 5000, "'" + "x" * 36 + "..."),
    ],
    ids=["bytes", "mapping", "array", "image", "class", "list", "text"],
)
def test_a_message_never_holds_a_whole_value(value, told):
    assert in_short(value) == told


def test_a_file_that_is_no_image_is_refused_without_the_name_of_a_class(put, tmp_path):
    put("data/a/0.png")
    (tmp_path / "data/b").mkdir()
    (tmp_path / "data" / "b" / "x.png").write_bytes(b"RIFF\0\0\0\0WAVE")
    with pytest.raises(DataError, match="it is in no known format of images") as caught:
        opened(source={"type": "imagefolder", "path": "data"})
    assert "<" not in str(caught.value)
