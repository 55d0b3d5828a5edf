"""Images of files are made as they are fetched: the same bits, wherever and however often."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from finetune.data.kept_samples import KeptSamples
from finetune.data.loading.gathered_samples import GatheredSamples
from finetune.errors import DataError
from finetune.runs.lock import holder_of

SIZES = {"a": [(20, 30), (25, 21), (40, 18)], "b": [(31, 33), (9, 50)]}
PLAIN = [
    {"type": "Resize", "size": [12, 14]},
    {"type": "ToDtype", "dtype": "float32", "scale": True},
    {"type": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
]
DRAWN = [
    PLAIN[0],
    {"type": "RandomHorizontalFlip"},
    {"type": "ColorJitter", "hue": 0.2},
    *PLAIN[1:],
]


@pytest.fixture
def images(write_images, prepared):
    source = write_images(SIZES)

    def make(transforms=PLAIN, **more):
        more = {"workers": 0, **more}
        return prepared({"source": source, "transforms": transforms, **more})

    return make


def batches(samples, epoch):
    return list(samples.fetches([torch.tensor([3, 0, 4]), torch.tensor([1, 2])], epoch))


def equal(one, other):
    return all(
        torch.equal(a.inputs["image"], b.inputs["image"]) and torch.equal(a.target, b.target)
        for a, b in zip(one, other, strict=True)
    )


def test_images_of_any_sizes_are_what_torchvision_makes_of_each(tmp_path, images):
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize([12, 14]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        ]
    )
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    by_hand = torch.stack([transform(Image.open(path)) for path in paths])
    assert torch.equal(images().train.fetch(range(5)).inputs["image"], by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("transforms", [PLAIN, DRAWN], ids=["plain", "drawn"])
@pytest.mark.parametrize("memory_gb", [0, 1])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_neither_processes_nor_kept_samples_change_a_bit(images, transforms, memory_gb, workers):
    here = images(transforms, memory_gb=0).train
    there = images(transforms, memory_gb=memory_gb, workers=workers).train
    for epoch in range(3):
        assert equal(batches(here, epoch), batches(there, epoch))


def test_random_transforms_draw_anew_in_every_epoch_also_of_kept_samples(images):
    samples = images(DRAWN, memory_gb=1).train
    assert not equal(batches(samples, 0), batches(samples, 1))
    assert equal(batches(samples, 0), batches(samples, 0))


def test_what_is_kept_is_not_decoded_again(tmp_path, images):
    samples, others = images(memory_gb=1).train, images(memory_gb=0).train
    first = batches(samples, 0)
    for path in (tmp_path / "images").glob("*/*.png"):
        path.unlink()
    assert equal(first, batches(samples, 1))
    with pytest.raises(DataError, match="no such image file"):
        batches(others, 1)


def test_opening_decodes_no_more_than_the_first_images(tmp_path, images):
    path = tmp_path / "images" / "b" / "1.png"
    images()
    path.write_bytes(path.read_bytes()[:-40])
    samples = images().train
    samples.fetch(range(4))
    with pytest.raises(DataError, match=r"1\.png.*, in row 5 of "):
        samples.fetch([4])


@pytest.mark.slow
def test_samples_without_room_are_made_again_and_a_line_says_so(images):
    [note] = [note for note in images(memory_gb=1e-7).notes if "memory_gb" in note]
    assert note == (
        "prepared samples would take 0.00 GiB, and 0.00 are left of data.memory_gb: they are made "
        "again in every epoch"
    )
    assert not any("memory_gb" in note for note in images(memory_gb=1).notes)
    assert not any("memory_gb" in note for note in images(memory_gb=0).notes)


def test_more_processes_than_cores_are_told(images):
    cores = len(os.sched_getaffinity(0))
    notes = images(workers=cores + 1).notes
    assert f"data.workers: {cores + 1} processes share {cores} cores" in notes
    assert not any("share" in note for note in images(workers=cores).notes)


def test_processes_stay_from_epoch_to_epoch(images, write_module, write_images, prepared):
    name = write_module(
        "numbered",
        "import os, torch\n"
        "def make():\n"
        "    return lambda sample: {'image': torch.full((1, 2, 2), os.getpid())}\n",
    )
    node = {"type": "import", "path": f"{name}:make", "random": True}
    source = {"type": "imagefolder", "path": write_images({"c": [(5, 5)] * 8})["path"]}
    samples = prepared({"source": source, "transforms": [node], "workers": 2}, trust=[name]).train
    order = list(torch.arange(len(samples)).split(1))
    seen = [
        {int(batch.inputs["image"].max()) for batch in samples.fetches(order, epoch)}
        for epoch in range(3)
    ]
    assert len(set.union(*seen)) == 2
    assert os.getpid() not in seen[0]


@pytest.mark.slow
def test_an_epoch_that_is_broken_off_leaves_the_next_one_whole(images):
    samples, here = images(DRAWN, workers=2).train, images(DRAWN).train
    order = [torch.tensor([row]) for row in (4, 3, 2, 1, 0)]
    fetched = samples.fetches(order, 0)
    next(fetched)
    fetched.close()
    assert equal(list(samples.fetches(order, 1)), list(here.fetches(order, 1)))


def test_arrays_are_finished_once_and_gathered(prepared):
    samples = prepared({"source": {"type": "sklearn", "name": "digits"}}).train
    assert isinstance(samples, GatheredSamples)


def test_a_sample_of_another_shape_or_type_is_not_kept():
    kept = KeptSamples({"x": torch.zeros(3), "y": torch.zeros(2, 2, dtype=torch.uint8)}, 4)
    right = {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.ones(2, 2, dtype=torch.uint8)}
    kept.put(2, right)
    for wrong in (
        {"x": torch.zeros(4), "y": right["y"]},
        {"x": right["x"].double(), "y": right["y"]},
        {"x": right["x"]},
        {"x": right["x"], "y": "text"},
    ):
        kept.put(1, wrong)
    assert kept.get(0) is kept.get(1) is None
    assert all(torch.equal(value, right[name]) for name, value in kept.get(2).items())
    kept.get(2)["x"].zero_()
    assert torch.equal(kept.get(2)["x"], right["x"])


@pytest.mark.slow
def test_a_sample_of_more_columns_than_the_system_takes_in_one_write_is_kept():
    sample = {f"c{n}": torch.full((2,), n) for n in range(1100)}
    kept = KeptSamples(sample, 2)
    kept.put(1, sample)
    assert all(torch.equal(value, sample[name]) for name, value in kept.get(1).items())


def test_a_run_that_has_ended_leaves_no_process_and_no_lock(small_run, write_images, tmp_path):
    source = {"type": "imagefolder", "path": write_images(SIZES)["path"]}
    layers = [{"name": "flat", "type": "Flatten"}]
    layers += [{"name": "head", "type": "Linear", "out_features": "classes"}]
    data = {"source": source, "transforms": DRAWN, "workers": 2}
    options = {"model": {"layers": layers}, "data": data, "task": {"type": "classification"}}
    trainer, others = small_run(**options), multiprocessing.active_children()
    trainer.fit(quiet=True)
    assert holder_of(tmp_path / "run") is None
    assert set(multiprocessing.active_children()) <= set(others)
    # also where the trainer, and with it the samples, is still there
    assert trainer.splits.train is not None


def test_columns_that_no_step_touches_are_gathered_and_tell_their_lengths(
    tmp_path, write_images, prepared, minilm
):
    """A text beside an image: its tokens are known before any image is decoded."""
    write_images({"a": [(20, 30), (25, 21), (9, 9)], "b": [(31, 33)]})
    rows = ["image,text,label", "a/0.png,one,x", "a/1.png,one two three,y", "a/2.png,four,x",
            "b/0.png,five six,y"]  # fmt: skip
    (tmp_path / "images" / "t.csv").write_text("\n".join(rows) + "\n")
    source = {"type": "csv", "path": str(tmp_path / "images" / "t.csv")}
    steps = [{"type": "tokenize", "tokenizer": minilm}, *({**s, "column": "image"} for s in PLAIN)]
    data = {"source": source, "inputs": ["image", "text"], "target": "label"}
    samples = prepared(data | {"transforms": steps, "workers": 0}).train
    assert samples.extent(torch.tensor([0, 1])) == (5, 3, 5)
    assert samples.longest == 5
    batch = samples.fetch([1, 3])
    assert list(batch.inputs) == list(samples.inputs)
    assert batch.inputs["input_ids"].shape == (2, 5)
    for path in (tmp_path / "images").glob("*/*.png"):
        path.unlink()
    blank = samples.fetch([1, 3], blank=["image"])
    assert torch.equal(blank.inputs["input_ids"], batch.inputs["input_ids"])
    assert not blank.inputs["image"].any()


def test_images_that_differ_in_size_before_they_are_cropped_are_not_kept(images):
    crop = [{"type": "RandomResizedCrop", "size": [8, 8]}]
    notes = images(crop, memory_gb=1, evaluation_transforms=PLAIN[:1]).notes
    told = "samples differ in size before they are cropped: they are made again in every epoch"
    assert told in notes


LEFT_OPEN = """
import sys, torch
from finetune.config.data import (DataConfig)
from finetune.config.task_keys import ClassificationTask
from finetune.data.prepare import open_data, prepare_data
from finetune.models.preprocessing import Preprocessing
resize = {"type": "Resize", "size": [8, 8]}
source = {"type": "imagefolder", "path": sys.argv[1]}
config = DataConfig.model_validate({"source": source, "transforms": [resize], "workers": 2})
opened = open_data(config, ClassificationTask(type="classification"), seed=0, trust=())
data = prepare_data(opened, config, Preprocessing(None, None), seed=0, trust=())
for epoch in range(2):
    for batch in data.train.fetches(list(torch.arange(5).split(1)), epoch):
        assert batch.inputs["image"].shape == (1, 3, 8, 8)
"""


@pytest.mark.slow
def test_a_program_that_never_closes_its_samples_ends_in_silence(write_images):
    folder = write_images(SIZES)["path"]
    for _ in range(3):  # it was a race
        done = subprocess.run(
            [sys.executable, "-c", LEFT_OPEN, folder],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
