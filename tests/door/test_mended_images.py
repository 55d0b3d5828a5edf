"""An image that was used counts as changed data when another takes its place, noted or not."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError, FinetuneError
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

LIMIT = "finetune.data.identify.identified_files._READ_AT_START_BYTES"
LAYERS = [{"type": "Flatten"}, {"type": "Linear", "out_features": "classes"}]


class Acts(Tracker):
    """Does something after some steps, once each."""

    def __init__(self, after):
        self.after = dict(after)

    def scalars(self, step, values):
        self.after.pop(step, lambda: None)()


def paint(path, seed, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def half_of(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path):
    """Eight images of two classes."""
    paths = sorted(tmp_path / "images" / "ab"[n % 2] / f"{n}.png" for n in range(8))
    for number, path in enumerate(paths):
        paint(path, number)
    return paths


@pytest.fixture
def train(small_config, folder, tmp_path, monkeypatch):
    """Build a run on the images, which are only listed; `after` acts after some steps."""
    monkeypatch.setattr(LIMIT, 0)

    def build(after=None, steps=8, validation=None):
        source = {"type": "imagefolder", "path": str(tmp_path / "images")}
        parts = {"source": source}
        if validation is not None:
            parts = {"train": source, "validation": {**source, "path": str(validation)}}
        config = small_config(
            model={"layers": LAYERS},
            data={**parts, "workers": 0, "memory_gb": 0},
            task={"type": "classification"},
            train={"steps": steps, "batch_size": 2, "evaluate_every": {"steps": 1}, "log_every": 1},
            cache={"use": "off"},
        )
        return build_trainer(config, tmp_path / "run", tracker=Acts(after or {}))

    return build


def unread(tmp_path):
    return json.loads((tmp_path / "run/data.json").read_text())["identity"].get("unread")


def fails(trainer, match="cannot read the image"):
    with pytest.raises(DataError, match=match) as caught:
        trainer.fit(quiet=True)
    return str(caught.value)


def row_of(trainer, draw):
    """Return the position of the sample that an epoch of the run draws at a place."""
    return int(trainer.timeline.order.of(trainer.timeline.seed, draw // 8)[draw % 8])


def test_a_sample_that_was_trained_on_is_not_exchanged_as_mended(train, folder, tmp_path):
    trainer = train()
    last = folder[row_of(trainer, 15)]
    told = fails(train({4: lambda: half_of(last)}))
    assert "mend it: the same command goes on from step 7" in told
    assert unread(tmp_path) is None
    paint(last, 99, (8, 9))
    with pytest.raises(FinetuneError, match="the data is not that of the run"):
        train()


def test_a_file_that_vanishes_in_the_second_epoch_is_told_to_be_put_back(train, folder, tmp_path):
    last = folder[row_of(train(), 15)]
    raw = last.read_bytes()
    told = fails(train({4: last.unlink}), "no such image")
    assert "mend it: the same command goes on from step" in told
    assert unread(tmp_path) is None
    last.write_bytes(raw)
    again = train()
    again.fit(quiet=True)
    assert again.progress.step == 8


def test_a_file_that_changes_in_the_first_epoch_is_not_noted(train, folder, tmp_path):
    trainer = train()
    paths = [folder[row_of(trainer, draw)] for draw in (0, 1, 6, 7)]
    fails(train({1: lambda: [paint(path, 99, (8, 9)) for path in paths]}), "has changed since")
    assert unread(tmp_path) is None


def test_a_sample_that_was_not_trained_on_yet_is_noted_and_the_mark_ends(train, folder, tmp_path):
    last = folder[row_of(train(), 7)]
    row, raw = folder.index(last), last.read_bytes()
    told = fails(train({1: last.unlink}), "no such image")
    assert "mend it or put another in its place" in told
    assert unread(tmp_path) == {"train": [row]}
    last.write_bytes(raw)
    again = train(steps=9)
    again.fit(quiet=True)
    assert unread(tmp_path) is None
    paint(last, 99, (8, 9))
    with pytest.raises(FinetuneError, match="the data is not that of the run"):
        train(steps=10)


@pytest.mark.parametrize("step", [0, 2])
def test_a_validation_sample_is_noted_only_before_there_are_figures(train, tmp_path, step):
    other = tmp_path / "others"
    for number in range(4):
        paint(other / "ab"[number % 2] / f"{number}.png", 50 + number)
    gone = (other / "b/3.png").unlink
    trainer = train({step: gone} if step else {}, validation=other)
    if step == 0:
        gone()
    fails(trainer, "no such image")
    assert unread(tmp_path) == (None if step else {"validation": [3]})


def test_a_note_that_cannot_be_written_does_not_hide_the_first_error(train, folder, tmp_path):
    last = folder[row_of(train(), 7)]
    document = tmp_path / "run/data.json"
    for damage in ("{}", "[]", '{"identity": 3}', "{", None):
        paint(last, 7)

        def both(damage=damage):
            last.unlink()
            document.unlink() if damage is None else document.write_text(damage)

        fails(train({1: both}), "no such image")
        shutil.rmtree(tmp_path / "run")


CONFIG = """
model:
  layers:
    - {type: Flatten}
    - {type: Linear, out_features: classes}
data:
  source: {type: imagefolder, path: images}
  split: {validation: 0.25, test: 0.25}
  workers: 0
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {steps: 2, batch_size: 3}
"""


def test_a_run_knows_its_listed_folder_whatever_the_current_one(
    folder, tmp_path, monkeypatch, command_line
):
    monkeypatch.setattr(LIMIT, 0)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert command_line("train", "c.yaml", "--run", "run").code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line("eval", str(tmp_path / "run")).code == 0
    paint(folder[0], 0, (8, 9))
    assert command_line("eval", str(tmp_path / "run")).code == 2
