"""Pictures on the page about a run: what the run keeps, bounded, and what a stranger may plant."""

import base64
import json

import numpy as np
import pytest

from finetune.config.loader import load_config
from finetune.pictures.drawing import as_png
from finetune.report.page import render_page
from finetune.runs.kept_pictures import (
    MOST_BYTES,
    KeptPicture,
    as_document,
    read_pictures,
)
from finetune.train.wire import build_trainer

PNG = as_png(np.zeros((4, 6, 3), np.uint8))


def kept(name, png=PNG, title="what it shows"):
    return KeptPicture(name, title, 20, 6, 4, png)


def write(run, document):
    (run / "pictures.json").write_text(json.dumps(document))


def test_a_run_keeps_its_pictures_and_shows_them_also_without_any_program(tmp_path):
    (tmp_path / "c.yaml").write_text("""
model: {layers: [{name: flatten, type: Flatten}, {name: head, type: Linear, out_features: classes}]}
data: {source: {type: sklearn, name: digits}, split: {validation: 0.2}}
task: {type: classification, metrics: [accuracy]}
optimizer: {type: SGD, lr: 0.02}
train: {steps: 2, batch_size: 64}
tracking: []
""")
    build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run").fit(quiet=True)
    pictures, left_out = read_pictures(tmp_path / "run")
    assert [picture.name for picture in pictures] == [
        *(f"validation/{name}" for name in ("confusion", "classes", "calibration")),
        *("validation/most_wrong", "validation/least_certain", "freeze/moved"),
    ]
    assert left_out == []
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img ") == 6
    assert 'alt="Confusion matrix: ' in page
    assert pictures[0].source in page


def test_what_is_too_large_is_left_out_and_named(plant):
    run = plant()
    large = PNG + bytes(MOST_BYTES)
    write(run, as_document([kept("validation/a"), kept("validation/large", large)]))
    pictures, left_out = read_pictures(run)
    assert [picture.name for picture in pictures] == ["validation/a"]
    assert left_out == ["validation/large"]
    assert "too large for this page: validation/large" in render_page([run])
    write(run, as_document([kept("validation/large", large)]))
    assert "too large for this page: validation/large" in render_page([run])


def test_all_pictures_of_a_run_together_are_bounded():
    document = as_document([kept(str(n), PNG + bytes(MOST_BYTES - len(PNG))) for n in range(9)])
    assert [len(document["pictures"]), len(document["left_out"])] == [5, 4]


def test_a_page_about_many_runs_has_none_and_says_so(plant):
    runs = [plant(f"run-{number}") for number in range(4)]
    for run in runs:
        write(run, as_document([kept("validation/a")]))
    assert "<img" not in render_page(runs)
    assert "A page about at most three runs" in render_page(runs)
    assert render_page(runs[:3]).count("<img") == 3


ENTRY = kept("validation/a", title='"><script>alert(1)</script>')._asdict()
ENTRY["png"] = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"pictures": 3, "left_out": []},
        {"pictures": ["x", None, {}], "left_out": []},
        {"pictures": [ENTRY | {"png": "no base64!"}], "left_out": []},
        {"pictures": [ENTRY | {"png": base64.b64encode(b"<svg>").decode()}], "left_out": []},
        {"pictures": [ENTRY | {"width": '6" onload="x'}], "left_out": []},
    ],
    ids=["list", "empty", "number", "others", "no base64", "no png", "no width"],
)
def test_what_is_no_picture_is_passed_over(plant, document):
    run = plant()
    write(run, document)
    assert "<img" not in render_page([run])


def test_a_title_of_a_stranger_is_text(plant):
    run = plant()
    write(run, {"pictures": [ENTRY], "left_out": ["<b>"]})
    page = render_page([run])
    assert "<script>alert" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<img") == 1
