"""Data that changes between stop and going on is refused, or accepted and told."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from finetune.data.identify.differences import differences
from finetune.data.identify.identity import DataIdentity, hash_rows
from finetune.data.table import Listed
from finetune.errors import CheckpointError
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

MODEL = {"layers": [{"name": "linear", "type": "Linear", "out_features": "classes"}]}
TASK = {"type": "classification"}
TRAIN = {"steps": 10, "batch_size": 4, "checkpoint": {"every": {"steps": 5}}}
LONGER = TRAIN | {"steps": 20}


class Said(Tracker):
    """Keeps the lines told to the person who watches."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def lines_of(seed, count=64, labels="uv"):
    draw = random.Random(seed)
    rows = [f"{draw.random():.4f},{draw.random():.4f},{labels[n % 2]}" for n in range(count)]
    return ["a,b,y", *rows]


@pytest.fixture
def table(tmp_path):
    def write(lines):
        (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")

    return write


@pytest.fixture
def build(small_config, tmp_path):
    def build_(train=TRAIN, said=None, run="run", **keywords):
        data = {
            "source": {"type": "csv", "path": str(tmp_path / "d.csv")},
            "inputs": ["a", "b"],
            "target": "y",
            "transforms": [{"type": "stack"}],
            "split": {"validation": 0.25},
        }
        config = small_config(model=MODEL, data=data, task=TASK, train=train)
        return build_trainer(config, tmp_path / run, tracker=said, **keywords)

    return build_


HEADER, *ROWS = lines_of(1)
CHANGES = {
    "replaced": (lines_of(2), "rows: 64 changed, 0 added, 0 removed, of 64"),
    "one cell": ([HEADER, "0.5,0.5,u", *ROWS[1:]], "rows: 1 changed, 0 added, 0 removed, of 64"),
    "added": ([HEADER, *ROWS, "0.5,0.5,u"], "rows: 0 changed, 1 added, 0 removed, of 64"),
    "removed": ([HEADER, *ROWS[2:]], "rows: 0 changed, 0 added, 2 removed, of 64"),
    "label": ([HEADER, ROWS[0][:-1] + "v", *ROWS[1:]], "rows: 1 changed"),
    "columns": (["b,a,y", *ROWS], "column 'b' holds what column 'a' held"),
    "classes": ([HEADER, *(row.replace("v", "w") for row in ROWS)], "classes: 'v' gone, 'w' new"),
    "reversed": ([HEADER, *ROWS[::-1]], "in another part"),
}


@pytest.mark.parametrize(("lines", "told"), CHANGES.values(), ids=CHANGES)
def test_a_run_does_not_go_on_with_other_data(build, table, tmp_path, lines, told):
    table(lines_of(1))
    build().fit()
    before = (tmp_path / "run" / "data.json").read_bytes()
    table(lines)
    for keywords in ({}, {"train": LONGER}):
        with pytest.raises(CheckpointError) as caught:
            build(**keywords)
        assert "the data is not that of the run: " in str(caught.value)
        assert told in str(caught.value)
        assert "--data-changed" in caught.value.hint
    with pytest.raises(CheckpointError, match="the data is not that of the run"):
        build(run="branch", resume=tmp_path / "run")
    assert (tmp_path / "run" / "data.json").read_bytes() == before


@pytest.mark.parametrize(("lines", "told"), CHANGES.values(), ids=CHANGES)
def test_changed_data_that_is_accepted_is_told_once(build, table, lines, told):
    table(lines_of(1))
    build().fit()
    table(lines)
    said = Said()
    trainer = build(LONGER, said, data_changed=True)
    assert trainer.progress.step == 10
    assert any("goes on with changed data: " in line and told in line for line in said.lines)
    trainer.fit()
    assert build(LONGER).progress.step == 20


def test_the_same_data_in_another_place_goes_on_without_a_word(build, table, tmp_path):
    table(lines_of(1))
    build().fit()
    table(lines_of(1))
    said = Said()
    assert build(LONGER, said).progress.step == 10
    assert not any("data" in line for line in said.lines if "config" not in line)


def test_begun_anew_or_elsewhere_other_data_is_no_matter(build, table):
    table(lines_of(1))
    build().fit()
    table(lines_of(2))
    assert build(fresh=True).progress.step == 0
    assert build(run="other").progress.step == 0


@pytest.mark.parametrize(
    "identity",
    [None, 3, [], {}, {"version": 9}, {"version": 1, "columns": {}, "parts": {"train": {}}},
     {"version": 1, "columns": {}, "parts": {"train": {"size": 1, "rows": "a"}}},
     {"version": 1, "columns": {}, "parts": {"train": {"size": 1, "rows": "AAAA"}}},
     {"version": 1, "columns": {}, "parts": {}},
     {"version": 1, "columns": {}, "parts": {"train": {"size": float("inf"), "rows": ""}}}],
    ids=str,
)  # fmt: skip
def test_a_run_without_a_whole_record_of_its_data_goes_on_and_says_so(
    build, table, tmp_path, identity
):
    table(lines_of(1))
    build().fit()
    path = tmp_path / "run" / "data.json"
    document = json.loads(path.read_text())
    document["identity"] = identity
    if identity is None:
        del document["identity"]
    path.write_text(json.dumps(document))
    said = Said()
    trainer = build(LONGER, said)
    assert [line for line in said.lines if "goes on with data that cannot be compared" in line]
    trainer.fit()
    table(lines_of(2))
    with pytest.raises(CheckpointError, match="64 changed"):
        build(LONGER)


@pytest.mark.parametrize(
    "fitted",
    [
        None,
        [{"type": "standardize", "columns": {"a": {"mean": [1], "deviation": [-1]}}}],
        [{"type": "categories", "columns": {"a": {"names": []}}, "makes_positions": True}],
    ],
    ids=["none", "standardize", "categories"],
)
def test_a_run_whose_fitted_figures_are_damaged_does_not_fit_them_anew(
    build, table, tmp_path, fitted
):
    table(lines_of(1))
    build().fit()
    path = tmp_path / "run" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fitted": fitted}))
    with pytest.raises(CheckpointError, match="what the fitted steps have kept") as caught:
        build(LONGER)
    assert "--fresh" in caught.value.hint
    build(fresh=True).fit()
    assert build(LONGER).progress.step == 10


def test_images_of_equal_size_and_time_are_other_data(small_config, tmp_path):
    draw = np.random.default_rng(0)

    def paint(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)

    paths = [tmp_path / f"images/{label}/{n}.bmp" for label in "ab" for n in range(8)]
    for path in paths:
        paint(path)
    layers = [{"name": "flat", "type": "Flatten"}, *MODEL["layers"]]
    config = small_config(
        model={"layers": layers},
        data={"source": {"type": "imagefolder", "path": str(tmp_path / "images")}},
        task=TASK,
        train=TRAIN,
    )
    build_trainer(config, tmp_path / "run").fit()
    paint(paths[3])
    with pytest.raises(CheckpointError, match="rows: 1 changed, 0 added, 0 removed, of 16"):
        build_trainer(config, tmp_path / "run")


def identity(rows, parts=("train",)):
    column = Listed(rows, "things")
    return DataIdentity.of(dict.fromkeys(parts, hash_rows({"a": column}, ["a"])), None)


def test_a_record_comes_back_as_it_was_written():
    one = identity(["x", "y", "y"])
    document = json.loads(json.dumps(one.as_document()))
    assert differences(DataIdentity.read(document, None), one) == []
    assert differences(one, identity(["x", "y"])) == [
        "rows: 0 changed, 0 added, 1 removed, of 3"
    ]  # fmt: skip
    assert differences(one, identity(["y", "x", "y"])) == ["rows: in another order"]


def test_of_very_many_rows_one_hash_is_kept(monkeypatch):
    monkeypatch.setattr("finetune.data.identify.identity.MOST_HASHED_ROWS", 2)
    one = identity(["x", "y", "y"])
    assert len(one.parts["train"]) == 1
    assert differences(one, identity(["x", "y", "y"])) == []
    assert differences(one, identity(["x", "y", "z"])) == ["rows: other ones, 3 there, 3 now"]


def test_rows_that_nobody_can_tell_the_contents_of_are_counted():
    assert identity(["x", object()]).num_unknown == 1
