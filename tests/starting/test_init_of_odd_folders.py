"""Folders of odd kinds: `init` writes a config that `plan` accepts, or tells why in one line."""

import json

import pytest
from odd_folders import (
    REFUSED,
    WORKS,
    numbered_images_as_a_test,
    picture,
    semicolons_and_latin_1,
)

from finetune.starting.cells_of_gaps import marked_number


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKS)
def test_init_writes_a_config_that_plan_accepts(kind, tmp_path, monkeypatch, command_line):
    make, arguments, wanted = WORKS[kind]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", make(tmp_path / "data"), "--out", "c.yaml", *arguments)
    assert shown.code == 0, shown.err
    text = (tmp_path / "c.yaml").read_text("utf-8")
    assert [part for part in wanted if part not in text] == [], text
    planned = command_line("plan", "c.yaml")
    assert planned.code == 0, planned.err
    assert "far from 1" not in planned.out


@pytest.mark.parametrize("kind", REFUSED)
def test_init_tells_in_one_line_why_there_is_no_config(kind, tmp_path, monkeypatch, command_line):
    make, wanted = REFUSED[kind]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", make(tmp_path / "data"), "--out", "c.yaml")
    assert shown.code == 2
    _, *hint = shown.err.splitlines()
    assert wanted in shown.err
    assert len(hint) <= 1
    assert all(line.startswith("    ") for line in hint)
    assert not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--target", "kauf", "--inputs", "kauf"], "'kauf' is both an input and what is learnt"),
        (["--epochs", "9" * 20], "--epochs"),
        (["--batch-size", "9" * 20], "--batch-size"),
    ],
    ids=["target as input", "epochs", "batch size"],
)
def test_what_no_config_takes_is_refused_and_nothing_is_written(
    arguments, wanted, tmp_path, command_line
):
    path = semicolons_and_latin_1(tmp_path)
    shown = command_line("init", path, "--out", tmp_path / "c.yaml", *arguments)
    assert shown.code == 2
    assert wanted in shown.err
    assert not (tmp_path / "c.yaml").exists()


def test_how_labels_of_parts_were_found_is_told(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    folder = numbered_images_as_a_test(tmp_path / "data")
    shown = command_line("init", folder, "--out", "c.yaml", "--model", "convnet")
    assert "trained from scratch, as you said" in shown.out
    assert "labels: 'cat', 'dog', found in names such as 'cat.0.jpg'" in shown.out + shown.err
    assert "test is left out: nothing tells the labels of its files" in shown.out + shown.err
    assert "parts: train, validation, as the folders are called" in shown.out + shown.err


def test_folders_inside_class_folders_are_told(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    for n in range(24):
        picture(
            tmp_path / "pets" / ["cat", "dog"][n % 2] / ["test", "train"][n // 2 % 2] / f"{n}.png"
        )
    shown = command_line("init", "pets", "--model", "convnet")
    assert shown.code == 0, shown.err
    assert "inside the class folders, 'test', 'train', tell nothing of the label" in shown.out


@pytest.mark.parametrize(
    ("cells", "cell"),
    [
        (["01", "02", "03"], None),
        (["1234567890123456789", "+-1"], None),
        (["01", "2,50"], "2,50"),
        (["1.5", "1 000"], "1 000"),
        (["3", "4.5"], None),
    ],
)
def test_only_a_sign_for_people_makes_digits_a_number_with_marks(cells, cell):
    assert marked_number(cells) == cell


def test_a_large_file_of_coco_is_known_by_keys_far_from_its_ends(tmp_path, command_line):
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(5000)]
    boxes = [{"id": n, "image_id": n, "bbox": [1, 2, 3, 4]} for n in range(5000)]
    kinds = [{"id": n, "name": "a" * 40} for n in range(5000)]
    document = {"info": {}, "images": images, "annotations": boxes, "categories": kinds}
    (tmp_path / "c.json").write_text(json.dumps(document))
    shown = command_line("init", tmp_path / "c.json", "--out", tmp_path / "c.yaml")
    assert shown.code == 2
    assert "holds annotations as COCO has them" in shown.err
