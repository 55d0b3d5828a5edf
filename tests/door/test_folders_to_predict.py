"""A folder to predict is read as training reads one: what is no sample is passed over, and told."""

import io

import numpy as np
import pytest
from PIL import Image

from finetune.config.data import DataConfig
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.readers.forms import opened_bytes
from finetune.errors import DataError

UNREADABLE = b"\xfd\x01thumbs\xff"


@pytest.fixture
def pics(tmp_path, monkeypatch):
    """Make the folder `pics` with files by name; an ending of images makes an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()

    def make(**files):
        for name, content in files.items():
            path = tmp_path / "pics" / name
            if name.endswith(".png"):
                Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
            else:
                path.write_bytes(content)

    return make


def predicted(kind, source="imagefolder", path="pics"):
    config = DataConfig.model_validate({"source": {"type": source, "path": path}})
    return read_incoming("pics", config, {"x": kind}, io.StringIO())


@pytest.mark.parametrize("source", ["imagefolder", "csv"])
@pytest.mark.parametrize("kind", ["image", "grey image"])
def test_files_that_are_no_image_are_passed_over_and_counted(pics, source, kind):
    pics(**{"a.png": b"", "Thumbs.db": UNREADABLE, "notes.txt": b"caf\xe9"})
    [part] = predicted(kind, source)
    assert part.names == ["pics/a.png"]
    assert part.notes == ("2 files of 'pics' passed over: 1 .db, 1 .txt, such as 'pics/Thumbs.db'",)


def test_tables_beside_images_are_passed_over_as_in_training(pics):
    pics(**{"a.png": b"", "labels.csv": b"file,label\na.png,x\n", "p.jsonl": b"{}\n"})
    [part] = predicted("image")
    assert part.names == ["pics/a.png"]
    assert "passed over: 1 .csv, 1 .jsonl" in part.notes[0]


def test_a_table_of_images_is_read_where_a_folder_holds_no_other_image(pics, tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "pics" / "a.png")
    (tmp_path / "pics" / "a.png").rename(tmp_path / "pics" / ".a.png")
    pics(**{"new.csv": b"x\n.a.png\n", "Thumbs.db": UNREADABLE})
    [part] = predicted("image")
    assert part.names == ["pics/new.csv:1"]


def test_files_that_are_no_recording_are_passed_over(pics):
    pics(**{"a.wav": b"RIFF\0\0\0\0WAVEfmt ", "Thumbs.db": UNREADABLE, "x.csv": b"a,b\n"})
    [part] = predicted("audio", "audiofolder")
    assert part.names == ["pics/a.wav"]
    assert "2 files of 'pics' passed over: 1 .db, 1 .csv" in part.notes[0]


def test_files_that_are_no_text_are_passed_over(pics):
    pics(**{"a.txt": b"one text", "Thumbs.db": b"\0\1" + UNREADABLE})
    [part] = predicted("text", "textfolder")
    assert part.columns["x"] == ["one text"]
    assert "1 file of 'pics' passed over: 1 .db" in part.notes[0]


def test_a_text_in_another_encoding_is_refused_and_not_passed_over(pics):
    pics(**{"a.txt": b"one text", "b.txt": b"caf\xe9"})
    with pytest.raises(DataError, match=r"b\.txt:1: is not valid utf-8"):
        predicted("text", "textfolder")


def test_a_file_beside_tables_that_cannot_be_read_is_passed_over(pics):
    pics(**{"a.csv": b"x\n1\n", "Thumbs.db": UNREADABLE})
    [part] = predicted("number", "csv")
    assert part.names == ["pics/a.csv:1"]
    assert "1 file of 'pics' passed over: 1 .db" in part.notes[0]


@pytest.mark.parametrize(
    ("kind", "source", "missing"),
    [
        ("image", "imagefolder", "image and no table"),
        ("audio", "audiofolder", "recording and no table"),
        ("number", "csv", "table"),
    ],
)
def test_a_folder_without_any_sample_is_refused_with_what_it_holds(pics, kind, source, missing):
    pics(**{"Thumbs.db": UNREADABLE})
    with pytest.raises(DataError) as caught:
        predicted(kind, source)
    assert caught.value.where == "pics"
    assert caught.value.message == f"holds no sample: no {missing}"
    assert "passed over: 1 .db" in str(caught.value.hint)


def test_each_file_that_is_read_is_known_also_those_that_a_table_names(pics, tmp_path):
    pics(**{"a.png": b""})
    (tmp_path / "new.csv").write_text("x\npics/a.png\n")
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "t.csv"}})
    [part] = read_incoming("new.csv", config, {"x": "image"}, io.StringIO())
    found = {str(file) for file in part.files()}
    assert found == {"new.csv", "pics/a.png"}
    for file in found:
        with opened_bytes(tmp_path / file):
            pass
