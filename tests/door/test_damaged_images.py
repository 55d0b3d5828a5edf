"""Damaged image files: one clear line each, and a run goes on once they are mended."""

import os
import shutil
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.images import images_of
from finetune.data.media.pixels import PLAIN_RULES
from finetune.errors import DataError, FinetuneError
from finetune.train.wire import build_trainer

STEPS = [{"type": "Resize", "size": [6, 6]}, {"type": "RandomHorizontalFlip"}]
LAYERS = [
    {"name": "flat", "type": "Flatten"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]
LIMIT = "finetune.data.identify.identified_files._READ_AT_START_BYTES"
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp"}


def picture(seed, form="PNG"):
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def bomb(_):
    """Return a PNG whose header promises a billion pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 32_000, 32_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def written(content):
    """Return a damage that writes other bytes into the place of an image."""
    return lambda path, raw, draw: path.write_bytes(content(raw, draw))


def folder_in_its_place(path, raw, draw):
    path.unlink()
    path.mkdir()


def pipe_in_its_place(path, raw, draw):
    path.unlink()
    os.mkfifo(path)


def link_to_nothing(path, raw, draw):
    path.unlink()
    path.symlink_to(path.with_name("nothing.png"))


def link_to_itself(path, raw, draw):
    path.unlink()
    path.symlink_to(path)


DAMAGE = {
    "cut off": written(lambda raw, draw: raw[: draw.integers(1, len(raw) // 2)]),
    "empty": written(lambda raw, draw: b""),
    "zeros": written(lambda raw, draw: bytes(len(raw))),
    "noise": written(lambda raw, draw: draw.bytes(len(raw))),
    "wrong magic": written(lambda raw, draw: draw.bytes(8) + raw[8:]),
    "text": written(lambda raw, draw: b"<html>404 Not Found</html>"),
    "bomb": written(lambda raw, draw: bomb(draw)),
    "program": written(lambda raw, draw: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "vanished": lambda path, raw, draw: path.unlink(),
    "folder": folder_in_its_place,
    "pipe": pipe_in_its_place,
    "link to nothing": link_to_nothing,
    "link to itself": link_to_itself,
}


def told(path, kind, seed):
    """Damage an image, read it, and return the error."""
    draw = np.random.default_rng(seed)
    form = str(draw.choice(list(FORMATS)))
    place = path / f"{seed}{FORMATS[form]}"
    raw = picture(seed, form)
    place.write_bytes(raw)
    DAMAGE[kind](place, raw, draw)
    with pytest.raises(DataError) as caught:
        _ = images_of([place], "RGB", PLAIN_RULES)[0]
    return str(caught.value), place


def check(path, seed):
    kind = list(DAMAGE)[seed % len(DAMAGE)]
    text, place = told(path, kind, seed)
    first, *others = text.splitlines()
    assert str(place) in first, (kind, seed, text)
    assert len(first) < 500, (kind, seed, text)
    assert len(others) <= 1, (kind, seed, text)


def test_every_kind_of_damage_is_told_in_one_line_that_names_the_file(tmp_path):
    for seed in range(5 * len(DAMAGE)):
        check(tmp_path, seed)


@pytest.mark.slow
def test_a_thousand_damaged_images_are_each_told_in_one_line(tmp_path):
    for seed in range(1000):
        check(tmp_path, seed)


@pytest.fixture
def folder(tmp_path):
    """Twenty images of two classes."""
    paths = [tmp_path / "images" / "ab"[n % 2] / f"{n:02}.png" for n in range(20)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return sorted(paths)


@pytest.fixture(params=[512 << 20, 0], ids=["read at the start", "listed"])
def limit(request, monkeypatch):
    """Let images be identified by their contents, or by name and size."""
    monkeypatch.setattr(LIMIT, request.param)


@pytest.fixture
def train(small_config, folder, tmp_path):
    """Build a run on the images; its order of samples is that of every other one."""

    def build(name, *, steps=12, tracker=None, trust=(), **data):
        source = {"type": "imagefolder", "path": str(tmp_path / "images")}
        config = small_config(
            model={"layers": LAYERS},
            data={"source": source, "transforms": STEPS, "workers": 2, "memory_gb": 0} | data,
            task={"type": "classification"},
            train={"steps": steps, "batch_size": 4, "log_every": 1},
            trust=trust,
        )
        return build_trainer(config, tmp_path / name, tracker=tracker)

    return build


def half_of(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_equal(one, other):
    weights = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_run_that_met_a_damaged_image_goes_on_once_it_is_mended(train, folder, limit):
    whole = train("whole")
    whole.fit(quiet=True)
    raw = folder[13].read_bytes()
    half_of(folder[13])
    with pytest.raises(DataError) as caught:
        train("run").fit(quiet=True)
    first, hint = str(caught.value).splitlines()
    assert str(folder[13]) in first
    assert "row 14" in first
    assert "the same command goes on from step" in hint
    folder[13].write_bytes(raw)
    again = train("run")
    assert 0 < again.progress.step < 5
    again.fit(quiet=True)
    assert_equal(again, whole)
    # once more: what the run was told of its data holds from then on
    assert train("run").progress.step == 12


def test_a_run_goes_on_with_another_image_in_the_place_of_a_damaged_one(train, folder, limit):
    raw = picture(99)
    half_of(folder[13])
    with pytest.raises(DataError, match="cannot read the image"):
        train("run").fit(quiet=True)
    folder[13].write_bytes(raw)
    again = train("run")
    again.fit(quiet=True)
    whole = train("whole")
    whole.fit(quiet=True)
    assert_equal(again, whole)


def test_an_image_that_was_not_damaged_is_not_exchanged_unnoticed(train, folder, limit):
    half_of(folder[13])
    with pytest.raises(DataError, match="cannot read the image"):
        train("run").fit(quiet=True)
    folder[13].write_bytes(picture(13))
    folder[4].write_bytes(picture(1000, "BMP"))
    with pytest.raises(FinetuneError, match="the data is not that of the run"):
        train("run")


@pytest.mark.parametrize("kind", ["vanished", "pipe", "folder", "empty"])
def test_a_file_that_goes_while_a_run_is_built_is_told_with_its_row(train, folder, kind):
    trainer = train("run")
    raw = folder[13].read_bytes()
    DAMAGE[kind](folder[13], raw, np.random.default_rng(0))
    with pytest.raises(DataError) as caught:
        trainer.fit(quiet=True)
    assert str(folder[13]) in str(caught.value)
    assert "row 14" in str(caught.value)
    if folder[13].is_dir():
        shutil.rmtree(folder[13])
    folder[13].unlink(missing_ok=True)
    folder[13].write_bytes(raw)
    again = train("run")
    again.fit(quiet=True)
    assert again.progress.step == 12


SKIP = {"on_error": "skip"}
RESIZE = STEPS[:1]


def damage_four(folder):
    """Damage four images, each in another way."""
    draw = np.random.default_rng(0)
    for number, kind in ((0, "cut off"), (7, "empty"), (13, "bomb"), (19, "zeros")):
        DAMAGE[kind](folder[number], folder[number].read_bytes(), draw)


def test_skipped_images_are_equal_for_any_number_of_processes(train, folder):
    damage_four(folder)
    whole = train("whole", workers=0, **SKIP)
    whole.fit(quiet=True)
    for workers in (1, 4):
        other = train(f"workers-{workers}", workers=workers, memory_gb=1, **SKIP)
        other.fit(quiet=True)
        assert_equal(other, whole)


def test_a_resumed_run_skips_the_same_images(train, folder):
    damage_four(folder)
    whole = train("whole", **SKIP)
    whole.fit(quiet=True)
    train("cut", steps=5, **SKIP).fit(quiet=True)
    again = train("cut", **SKIP)
    assert again.progress.step == 5
    again.fit(quiet=True)
    assert_equal(again, whole)


def test_the_next_sample_takes_the_place_of_a_skipped_one(train, folder):
    half_of(folder[12])
    skipping = train("skipping", transforms=RESIZE, **SKIP)
    skipping.fit(quiet=True)
    folder[12].write_bytes(folder[13].read_bytes())
    copied = train("copied", transforms=RESIZE)
    copied.fit(quiet=True)
    assert_equal(skipping, copied)


def test_a_skipped_sample_brings_the_target_of_the_one_that_takes_its_place(train, folder):
    half_of(folder[9])  # the last one of its class
    batch = train("run", transforms=RESIZE, **SKIP).splits.train.fetch([9, 10])
    assert batch.target.tolist() == [1, 1]
    assert torch.equal(batch.inputs["image"][0], batch.inputs["image"][1])
    assert list(batch.skipped) == [9]


def test_evaluation_leaves_skipped_samples_out(train, folder):
    trainer = train("run", transforms=RESIZE)
    trainer.fit(quiet=True)
    figures = trainer.evaluate(trainer.splits.train)
    half_of(folder[13])
    skipping = train("skipping", transforms=RESIZE, **SKIP)
    skipping.model.load_state_dict(trainer.model.state_dict())
    losses = [
        torch.nn.functional.cross_entropy(
            trainer.model(**batch.inputs), batch.target, reduction="sum"
        ).item()
        for batch in skipping.splits.train.fetches(torch.arange(20).split(1), 0)
        if not batch.skipped
    ]
    found = skipping.evaluate(skipping.splits.train)
    assert len(losses) == 19
    assert found["loss"] == pytest.approx(sum(losses) / 19, rel=1e-5)
    assert found["loss"] != figures["loss"]


def test_how_many_are_skipped_is_told_with_an_example(train, folder, heard):
    damage_four(folder)
    train("run", tracker=heard, **SKIP).fit(quiet=True)
    [first] = [line for line in heard.said if line.startswith("a train sample is skipped")]
    assert "cannot read" in first or "no such" in first
    [last] = [line for line in heard.said if "train samples were skipped" in line]
    assert last.startswith("4 of 20 train samples were skipped (data.on_error: skip), such as: ")
    assert "in row " in last


def test_where_all_images_are_damaged_a_line_says_so(train, folder):
    for path in folder:
        half_of(path)
    with pytest.raises(DataError, match="none of 20 samples one after another can be read"):
        train("run", **SKIP)


def test_skipping_where_no_sample_is_read_after_the_start_is_refused(small_run):
    source = {"type": "random", "samples": 40, "features": 4, "targets": 3}
    with pytest.raises(FinetuneError, match=r"data\.on_error: has no effect"):
        small_run(data={"source": source, "on_error": "skip"})


def test_files_that_a_table_names_are_skipped_where_they_are_none(train, folder, tmp_path):
    draw = np.random.default_rng(0)
    names = [str(path.relative_to(tmp_path)) for path in folder]
    for number, kind in enumerate(("vanished", "folder", "pipe", "link to itself")):
        DAMAGE[kind](folder[3 + 4 * number], b"", draw)
    lines = [f"{name},{name[7]}" for name in names]
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    source = {"type": "csv", "path": str(tmp_path / "table.csv")}
    named = {"source": source, "inputs": ["image"], "target": "label"}
    trainer = train("run", **named, **SKIP)
    trainer.fit(quiet=True)
    assert sorted(trainer.splits.train.skipped) == [3, 7, 11, 15]


def test_a_run_that_stopped_can_go_on_by_skipping(train, folder):
    half_of(folder[13])
    with pytest.raises(DataError, match="cannot read the image"):
        train("run").fit(quiet=True)
    again = train("run", **SKIP)
    assert again.progress.step > 0
    again.fit(quiet=True)
    assert again.progress.step == 12


FAULTY = """
from finetune.errors import DataError

def faulty():
    def step(sample):
        raise DataError("the step has a fault")
    return step
"""


@pytest.mark.parametrize("random", [False, True])
def test_a_fault_of_a_transform_is_no_image_that_is_skipped(train, tmp_path, monkeypatch, random):
    name = f"faulty_steps_{random}"
    (tmp_path / f"{name}.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    step = {"type": "import", "path": f"{name}:faulty", "random": random}
    with pytest.raises(DataError, match=r"^the step has a fault"):
        train("run", trust=(name,), transforms=[*RESIZE, step], **SKIP)
