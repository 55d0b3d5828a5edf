"""Contents decide: nothing stored of a sample, or by code, is used once that is another one."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.importing import code_of
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

LONG_AGO = 1_600_000_000
MODEL = {
    "layers": [
        {"name": "conv", "type": "Conv2d", "out_channels": 8, "kernel_size": 3},
        {"name": "flat", "type": "Flatten"},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
}
TRAIN = {"epochs": 4, "batch_size": 8}


class Said(Tracker):
    """Keeps the lines told to the person who watches."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True, params=[512 << 20, 0], ids=["read at the start", "listed"])
def known_files(always, monkeypatch, tmp_path, request):
    """Let the cache be used however little it would save, and files be known however small."""
    limit = "finetune.data.identify.identified_files._READ_AT_START_BYTES"
    monkeypatch.setattr(limit, request.param)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("finetune.data.hashes.known_files._LEAST_BYTES", 0)
    monkeypatch.setattr("finetune.data.hashes.contents._RACY_NS", -(10**12))


@pytest.fixture
def folder(tmp_path):
    """Forty images of one size and time."""
    paths = [tmp_path / f"images/{label}/{n:02}.bmp" for label in "ab" for n in range(20)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(path, number)
    return paths


def paint(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (LONG_AGO, LONG_AGO))


def put_in_place(path, seed):
    paint(path.with_suffix(".new.bmp"), seed)
    path.with_suffix(".new.bmp").replace(path)


@pytest.fixture
def train(small_config, tmp_path):
    """Train on the images; return the trainer, done."""

    def run(name, transforms=({"type": "RandomHorizontalFlip"},), trust=(), data=None, **prefix):
        source = {"type": "imagefolder", "path": str(tmp_path / "images")}
        config = small_config(
            model=MODEL,
            data={"source": source, "transforms": list(transforms)} | (data or {}),
            task={"type": "classification"},
            freeze=["conv"],
            train=TRAIN,
            cache={"views": 2} | prefix,
            trust=trust,
        )
        said = Said()
        trainer = build_trainer(config, tmp_path / name, tracker=said)
        trainer.fit()
        # Rows are not even looked up: none is found wrong only as some are computed again.
        assert not [line for line in said.lines if "wrong" in line]
        return trainer

    return run


def assert_equal(one, other):
    weights = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def recorded(trainer):
    return trainer.cache.statistics.recorded


@pytest.mark.slow
def test_unchanged_images_are_answered_from_what_is_stored(train, folder):
    assert recorded(train("first")) > 0
    assert recorded(train("again")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("change", [put_in_place, paint], ids=["replaced", "written over"])
@pytest.mark.parametrize("count", [1, 13])
def test_no_row_of_an_image_that_was_another_of_equal_size_and_time_is_used(
    train, folder, change, count
):
    train("first")
    for number, path in enumerate(folder[:count]):
        change(path, 1000 + number)
    stored, off = train("stored"), train("off", use="off")
    assert recorded(stored) > 0
    assert_equal(stored, off)


@pytest.mark.slow
def test_a_link_to_another_image_counts_by_what_it_leads_to(train, folder):
    target, other = folder[1], folder[2]
    folder[0].unlink()
    folder[0].symlink_to(target)
    train("first")
    folder[0].unlink()
    folder[0].symlink_to(other)
    assert_equal(train("stored"), train("off", use="off"))


@pytest.mark.slow
def test_images_that_only_have_another_time_or_place_are_not_computed_again(
    train, folder, tmp_path
):
    train("first")
    for path in folder:
        os.utime(path)
        path.with_suffix(".moved").write_bytes(path.read_bytes())
        path.with_suffix(".moved").replace(path)
    assert recorded(train("again")) == 0


@pytest.mark.slow
def test_no_row_is_stored_or_used_of_an_image_that_is_skipped(train, folder):
    skip = {"on_error": "skip"}
    folder[7].write_bytes(folder[7].read_bytes()[:50])
    first, off = train("first", data=skip), train("off", data=skip, use="off")
    again = train("again", data=skip)
    assert recorded(first) > 0
    assert recorded(again) == 0
    assert_equal(first, off)
    assert_equal(again, off)
    paint(folder[7], 7)
    assert_equal(train("mended", data=skip), train("mended off", data=skip, use="off"))


CODE = """
import torch

def noise(scale=0.1):
    return lambda sample: sample | {"image": sample["image"] + helped(sample["image"])}
"""
HELP = "def helped(image):\n    return {value} if image.max() == 0 else 0\n"


@pytest.mark.slow
def test_rows_of_a_transform_of_the_users_are_not_used_once_its_code_is_another(
    train, folder, tmp_path, monkeypatch
):
    """Also where that concerns a single image, which no trial of a few samples would meet."""
    Image.new("RGB", (8, 8)).save(folder[33])
    package = tmp_path / "own_steps"
    package.mkdir()
    (package / "__init__.py").write_text("from .helping import helped\n" + CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    steps = [
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "import", "path": "own_steps:noise", "random": True},
    ]

    def run(name, value, **prefix):
        for module in ("own_steps", "own_steps.helping"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        (package / "helping.py").write_text(HELP.format(value=value))
        return train(name, steps, ("own_steps",), **prefix)

    assert recorded(run("first", 1)) > 0
    assert recorded(run("again", 1)) == 0
    assert_equal(run("stored", 2), run("off", 2, use="off"))


def test_every_file_of_a_trusted_package_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = tmp_path / "own_nets" / "inner"
    inner.mkdir(parents=True)
    for path in (inner.parent / "__init__.py", inner / "__init__.py", inner / "deep.py"):
        path.write_text("x = 1\n")
    seen = {code_of(["own_nets"])}
    for path in (inner.parent / "__init__.py", inner / "deep.py"):
        path.write_text("x = 2\n")
        os.utime(path, (LONG_AGO, LONG_AGO))
        seen.add(code_of(["own_nets"]))
    assert len(seen) == 3
    assert code_of(["own_nets.inner"]) in seen
    assert code_of(["nowhere_to_be_found"]) == code_of(["nowhere_else"]) == code_of([])
