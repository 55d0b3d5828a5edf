"""Targets that are made with the inputs: masks, boxes, points, tags; columns for the loss alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import finetune
from finetune.config.data import DataConfig
from finetune.errors import DataError

OWN = """
import torch
from torch.nn import functional as F


class Task:
    metrics = {}

    def loss(self, outputs, batch):
        Task.columns = dict(batch.columns)
        losses = F.cross_entropy(outputs, batch.target, reduction="none")
        weights = batch.columns.get("weight")
        losses = losses.flatten(1).mean(1)
        return losses if weights is None else losses * weights


def make():
    return Task()
"""
IMPORT = {"type": "import", "path": "own_task:make"}
FLIP = {"type": "RandomHorizontalFlip", "with": ["mask"]}


@pytest.fixture
def own_task(write_module):
    """The config of a task of one's own, which takes masks."""
    write_module("own_task", OWN)
    return IMPORT


def plainly(mask, path):
    mask.save(path)


def write_pairs(folder, count=8, size=(8, 12), save=plainly, ending="png"):
    """Write images and masks that are 1 where the image is bright; return the rows of a table."""
    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        bright = draw.random(size) < 0.4
        Image.fromarray(bright.astype(np.uint8) * 200).save(folder / f"{number}.png")
        mask = folder / f"{number}_mask.{ending}"
        save(Image.fromarray(bright.astype(np.uint8)), mask)
        rows.append([f"{number}.png", mask.name, 1 + number % 3])
    return rows


@pytest.fixture
def pairs(tmp_path, write_csv):
    """The source of images with their masks and a column of weights."""

    def write(**how):
        return write_csv([["image", "mask", "weight"], *write_pairs(tmp_path, **how)])

    return write


def masked(source, *transforms, **data):
    steps = {"transforms": list(transforms)} if transforms else {}
    return {"source": source, "inputs": ["image"], "target": "mask"} | steps | data


def is_aligned(batch):
    image = batch.inputs["image"]
    return torch.equal((image[:, 0] > 0.5).long(), batch.target)


@pytest.mark.parametrize(
    "step",
    [
        {"type": "RandomHorizontalFlip"},
        {"type": "RandomVerticalFlip"},
        {"type": "RandomCrop", "size": [5, 7]},
        {"type": "RandomRotation", "degrees": 40},
        {"type": "RandomAffine", "degrees": 20, "translate": [0.2, 0.2], "scale": [0.8, 1.2]},
        {"type": "CenterCrop", "size": [4, 6]},
        {"type": "Pad", "padding": 2},
    ],
    ids=lambda step: step["type"],
)
def test_a_mask_moves_with_its_image(prepared, pairs, own_task, step):
    data = masked(pairs(), step | {"with": ["mask"]}, split={"validation": 0.25})
    made = prepared(data, own_task, trust=("own_task",))
    targets = []
    for epoch in range(4):
        batch = made.train.fetch(torch.arange(6), epoch=epoch)
        assert batch.target.dtype == torch.int64
        assert is_aligned(batch)
        targets.append(batch.target)
    is_random = "Random" in step["type"]
    assert all(torch.equal(one, targets[0]) for one in targets) != is_random
    assert is_aligned(made.validation.fetch(torch.arange(2)))


def test_several_steps_move_a_mask_one_after_the_other(prepared, pairs, own_task):
    crop = {"type": "RandomCrop", "size": [6, 6], "with": ["mask"]}
    steps = [FLIP, crop, {"type": "ToDtype", "dtype": "float32", "scale": True}]
    made = prepared(masked(pairs(), *steps), own_task, trust=("own_task",))
    assert all(is_aligned(made.train.fetch(torch.arange(8), epoch=n)) for n in range(3))


SAVED = {
    "grey": plainly,
    "palette": lambda mask, path: _with_palette(mask).save(path),
    "bits": lambda mask, path: Image.fromarray(np.array(mask) > 0).save(path),
    "16 bits": lambda mask, path: Image.fromarray(np.array(mask).astype(np.uint16)).save(path),
    "three equal channels": lambda mask, path: Image.merge("RGB", [mask] * 3).save(path),
}


def _with_palette(mask):
    """A mask whose values are places in a palette of colours."""
    image = Image.frombytes("P", mask.size, mask.tobytes())
    image.putpalette([0, 0, 0, 9, 200, 30])
    return image


@pytest.mark.parametrize("how", SAVED)
def test_a_mask_is_read_as_the_numbers_that_it_holds(prepared, pairs, own_task, how):
    made = prepared(masked(pairs(save=SAVED[how])), own_task, trust=("own_task",))
    assert is_aligned(made.train.fetch(torch.arange(8)))


@pytest.mark.parametrize(
    ("save", "ending", "message"),
    [
        (lambda mask, path: mask.save(path, quality=95), "jpg", "is a JPEG, which blurs"),
        (
            lambda mask, path: Image.merge("RGB", [mask, mask.rotate(180), mask]).save(path),
            "png",
            "its pixels are colours",
        ),
    ],
    ids=["JPEG", "colours"],
)  # fmt: skip
def test_a_mask_without_certain_classes_is_refused(
    prepared, pairs, own_task, save, ending, message
):
    data = masked(pairs(save=save, ending=ending))
    with pytest.raises(DataError, match=message):
        prepared(data, own_task, trust=("own_task",))


def test_image_and_mask_are_turned_upright_alike(prepared, pairs, own_task, tmp_path):
    source = pairs()
    for path in tmp_path.glob("*.png"):
        image = Image.open(path)
        image.load()
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    made = prepared(masked(source), own_task, trust=("own_task",))
    batch = made.train.fetch(torch.arange(8))
    assert batch.target.shape == (8, 12, 8)
    assert is_aligned(batch)


def test_a_mask_of_another_size_is_told_with_its_row(prepared, pairs, own_task):
    source = pairs(save=lambda mask, path: mask.resize((5, 5)).save(path))
    message = r"the mask in column 'mask' is of \(5, 5\) pixels, its image of \(8, 12\), in row 1"
    with pytest.raises(DataError, match=message):
        prepared(masked(source, FLIP), own_task, trust=("own_task",))


@pytest.mark.parametrize("kind", ["RandomHorizontalFlip", "RandomRotation", "CenterCrop"])
def test_a_step_that_moves_the_image_alone_is_refused(prepared, pairs, own_task, kind):
    more = {"RandomRotation": {"degrees": 9}, "CenterCrop": {"size": 4}}.get(kind, {})
    with pytest.raises(DataError, match=f"{kind} moves the pixels of the image") as caught:
        prepared(masked(pairs(), {"type": kind} | more), own_task, trust=("own_task",))
    assert "with: [mask]" in caught.value.hint


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_a_built_in_task_refuses_masks_in_one_line(prepared, pairs, task):
    with pytest.raises(DataError, match=f"column 'mask' holds masks, which task '{task}'"):
        prepared(masked(pairs(), FLIP), task)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["maks"], "no column 'maks' to move along"), (["image"], "'image' is the image itself")],
)
def test_what_cannot_move_along_is_told(prepared, pairs, own_task, names, message):
    step = {"type": "RandomHorizontalFlip", "with": names}
    with pytest.raises(DataError, match=message) as caught:
        prepared(masked(pairs(), step), own_task, trust=("own_task",))
    assert caught.value.key == ("data", "transforms", 0, "with")


@pytest.fixture
def arrays(tmp_path):
    """The source of images as arrays, with what lies in them."""

    def write(**columns):
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (6, 3, 10, 20), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", image=images, **columns)
        return {"type": "arrays", "path": str(tmp_path / "images.npz")}

    return write


def test_points_and_boxes_move_with_the_image_and_regression_learns_them(prepared, arrays):
    points = np.tile(np.array([[2.0, 3.0], [5.0, 8.0]], np.float32), (6, 1, 1))
    boxes = np.tile(np.array([[1.0, 2.0, 5.0, 6.0]], np.float32), (6, 1, 1))
    for name, values, flipped in (
        ("points", points, [[18.0, 3.0], [15.0, 8.0]]),
        ("boxes", boxes, [[15.0, 2.0, 19.0, 6.0]]),
    ):
        step = {"type": "RandomHorizontalFlip", "with": [name]}
        data = {"source": arrays(**{name: values}), "inputs": ["image"], "target": name,
                "transforms": [step]}  # fmt: skip
        samples = prepared(data, "regression").train
        plain = samples.fetch([0]).inputs["image"].shape
        assert plain == (1, 3, 10, 20)
        seen = {str(samples.fetch([0], epoch=n).target[0].tolist()) for n in range(8)}
        if name == "points":
            # torchvision mirrors points at the last pixel, boxes at the border
            seen = {text.replace("17.0", "18.0").replace("14.0", "15.0") for text in seen}
        assert seen == {str(values[0].tolist()), str(flipped)}


@pytest.mark.parametrize("task", ["target", "loss column"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_a_mask_in_an_array_must_move_with_its_image(prepared, arrays, own_task, dtype, task):
    names = {"target": "mask"} if task == "target" else {"loss_columns": ["mask"]}
    source = arrays(mask=np.zeros((6, 10, 20), dtype), label=np.arange(6) % 2)
    data = {"source": source, "inputs": ["image"], "target": "label", **names}
    plain = {"type": "RandomHorizontalFlip"}
    with pytest.raises(DataError, match="not those of its mask 'mask'") as caught:
        prepared(data | {"transforms": [plain]}, own_task, trust=("own_task",))
    assert caught.value.key == ("data", "transforms", 0)
    assert prepared(data | {"transforms": [FLIP]}, own_task, trust=("own_task",))


@pytest.mark.parametrize("kind", ["RandAugment", "AutoAugment", "TrivialAugmentWide", "AugMix"])
def test_a_step_that_can_move_no_mask_is_refused_with_one_that_can(prepared, pairs, own_task, kind):
    with pytest.raises(DataError, match=f"{kind} moves the pixels of the image") as caught:
        prepared(masked(pairs(), {"type": kind}), own_task, trust=("own_task",))
    assert "{type: RandomAffine, degrees: 10, with: [mask]}" in caught.value.hint


@pytest.mark.parametrize("shape", [(3, 4), (5, 2)], ids=["boxes", "points"])
def test_boxes_and_points_that_are_left_behind_are_told(prepared, arrays, shape):
    source = arrays(places=np.ones((6, *shape), np.float32))
    data = {"source": source, "inputs": ["image"], "target": "places"}
    left = prepared(data | {"transforms": [{"type": "RandomHorizontalFlip"}]}, "regression")
    told = "RandomHorizontalFlip moves the pixels of the image and leaves 'places' as it is"
    assert sum(told in note for note in left.notes) == 1
    for step in (
        {"type": "RandomHorizontalFlip", "with": ["places"]},
        {"type": "ColorJitter", "brightness": 0.1},
    ):
        moved = prepared(data | {"transforms": [step]}, "regression")
        assert not any("moves the pixels" in note for note in moved.notes)


def test_whole_numbers_of_another_size_than_the_image_are_no_mask(prepared, arrays, own_task):
    source = arrays(captions=np.ones((6, 5, 7), np.int64))
    step = {"type": "RandomHorizontalFlip"}
    data = {"source": source, "inputs": ["image"], "target": "captions", "transforms": [step]}
    made = prepared(data, own_task, trust=("own_task",))
    assert made.train.fetch([0]).target.shape == (1, 5, 7)
    assert sum("leaves 'captions' as it is" in note for note in made.notes) == 1


def test_a_mask_in_an_array_moves_too_and_keeps_its_numbers(prepared, arrays, own_task):
    masks = np.zeros((6, 10, 20), np.uint8)
    masks[:, :, 0] = 7
    data = {"source": arrays(mask=masks), "inputs": ["image"], "target": "mask",
            "transforms": [FLIP]}  # fmt: skip
    samples = prepared(data, own_task, trust=("own_task",)).train
    targets = torch.cat([samples.fetch([0], epoch=n).target for n in range(8)])
    assert targets.unique().tolist() == [0, 7]
    assert {int(each[0].argmax()) for each in targets} == {0, 19}


def test_a_further_image_moves_with_the_first(prepared, pairs, own_task, tmp_path, write_csv):
    rows = write_pairs(tmp_path)
    source = write_csv([["image", "other", "label"], *([r[0], r[0], r[2]] for r in rows)])
    step = {"type": "RandomHorizontalFlip", "column": "image", "with": ["other"]}
    data = {"source": source, "inputs": ["image", "other"], "target": "label",
            "transforms": [step]}  # fmt: skip
    samples = prepared(data).train
    for epoch in range(3):
        inputs = samples.fetch(torch.arange(8), epoch=epoch).inputs
        assert torch.equal(inputs["image"], inputs["other"])


TAGGED = [
    {"text": "Ada met Bob", "tags": ["PER", "O", "PER"]},
    {"text": "in Rome", "tags": ["O", "LOC"]},
    {"text": "so", "tags": ["O"]},
    {"text": "Bob ran to Rome", "tags": ["PER", "O", "O", "LOC"]},
]


def tagged(write_jsonl, rows, **data):
    source = write_jsonl([{"x": n, **row} for n, row in enumerate(rows)])
    return {"source": source, "inputs": ["x"], "target": "tags"} | data


def test_tags_are_classes_padded_with_what_a_loss_leaves_out(prepared, write_jsonl, own_task):
    made = prepared(tagged(write_jsonl, TAGGED), own_task, trust=("own_task",))
    assert made.facts.classes == ("LOC", "O", "PER")
    batch = made.train.fetch([0, 1, 3])
    assert batch.target.tolist() == [
        [2, 1, 2, -100], [1, 0, -100, -100], [2, 1, 1, 0]
    ]  # fmt: skip
    assert made.train.fetch([2]).target.tolist() == [[1]]


def test_numbers_are_tags_as_they_are(prepared, write_jsonl, own_task):
    rows = [{"tags": [3, 0]}, {"tags": []}, {"tags": [5, 5, 1]}]
    made = prepared(tagged(write_jsonl, rows), own_task, trust=("own_task",))
    assert made.facts.classes is None
    assert made.train.fetch([1, 0]).target.tolist() == [[-100, -100], [3, 0]]


def test_a_tag_that_training_never_sees_is_told(prepared, write_jsonl, own_task):
    train = tagged(write_jsonl, TAGGED[1:3])
    other = write_jsonl([{"x": 9, "tags": ["PER"]}], "other.jsonl")
    data = {"train": train.pop("source"), "validation": other} | train
    with pytest.raises(DataError, match="label 'PER' of the validation part is never seen"):
        prepared(data, own_task, trust=("own_task",))


def test_what_is_no_list_of_tags_is_told_with_its_row(prepared, write_jsonl, own_task):
    rows = [{"tags": ["O", "O"]}, {"tags": ["O", 3.5, "O"]}]
    with pytest.raises(DataError, match=r"column 'tags' holds .* in row 2 of .*, which is no list"):
        prepared(tagged(write_jsonl, rows), own_task, trust=("own_task",))


def test_columns_for_the_loss_alone_are_in_the_batch(prepared, pairs, own_task, write_jsonl):
    data = masked(pairs(), FLIP, loss_columns=["weight"])
    made = prepared(data, own_task, trust=("own_task",))
    batch = made.train.fetch([0, 1, 2])
    assert batch.columns["weight"].tolist() == [1, 2, 3]
    assert set(batch.inputs) == {"image"}
    assert batch.to("cpu").columns.keys() == {"weight"}


def test_lists_and_masks_are_columns_for_the_loss_too(prepared, pairs, own_task):
    source = pairs()
    data = {"source": source, "inputs": ["image"], "target": "weight", "loss_columns": ["mask"],
            "transforms": [FLIP]}  # fmt: skip
    batch = prepared(data, own_task, trust=("own_task",)).train.fetch(torch.arange(8))
    assert torch.equal((batch.inputs["image"][:, 0] > 0.5).long(), batch.columns["mask"])
    assert batch.target.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("names", "where"), [(["image"], "twice"), (["mask"], "twice"), (["weight", "weight"], "twice")]
)
def test_a_column_is_named_for_one_purpose(pairs, names, where):
    with pytest.raises(ValidationError, match="is named twice"):
        DataConfig.model_validate(masked(pairs(), loss_columns=names))


def test_columns_that_no_loss_reads_are_refused(prepared, write_csv):
    source = write_csv([["x", "label", "w"], [1, "a", 1], [2, "b", 2]])
    data = {"source": source, "inputs": ["x"], "target": "label", "loss_columns": ["w"]}
    with pytest.raises(DataError, match="no loss reads them") as caught:
        prepared(data)
    assert caught.value.key == ("data", "loss_columns")


def test_text_for_the_loss_is_refused(prepared, pairs, own_task, tmp_path, write_csv):
    rows = [[*row, "words"] for row in write_pairs(tmp_path)]
    source = write_csv([["image", "mask", "weight", "note"], *rows])
    with pytest.raises(DataError, match="column 'note' holds 'words' in row 1"):
        prepared(masked(source, loss_columns=["note"]), own_task, trust=("own_task",))


@pytest.fixture
def segmentation(small_config, own_task, pairs):
    """The config of a small network that learns masks by a task of one's own."""

    def make(workers=0, steps=9, **data):
        return small_config(
            model={"layers": [
                {"name": "body", "type": "Conv2d", "out_channels": 4, "kernel_size": 3,
                 "padding": 1},
                {"name": "act", "type": "ReLU"},
                {"name": "head", "type": "Conv2d", "out_channels": 2, "kernel_size": 1},
            ]},
            data=masked(
                pairs(), FLIP, split={"validation": 0.25}, workers=workers,
                loss_columns=["weight"], **data,
            ),
            task=own_task,
            # The last weights: a run that ends early evaluates once more, which may be its best.
            train={"steps": steps, "batch_size": 2, "checkpoint": {"best": None}},
            trust=("own_task",),
        )  # fmt: skip

    return make


def weights_of(config, path):
    trainer = finetune.build_trainer(config, path)
    trainer.fit(quiet=True)
    return trainer.model.state_dict()


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_on_masks_ends_with_the_same_bits_after_a_stop(segmentation, tmp_path):
    whole = weights_of(segmentation(), tmp_path / "whole")
    # In the middle of the second epoch of three steps.
    weights_of(segmentation(steps=4), tmp_path / "cut")
    assert same(whole, weights_of(segmentation(), tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_on_masks_ends_alike_with_any_number_of_processes(segmentation, tmp_path, workers):
    whole = weights_of(segmentation(), tmp_path / "whole")
    assert same(whole, weights_of(segmentation(workers), tmp_path / "other"))


def test_masks_that_are_kept_and_made_again_are_alike(segmentation, tmp_path):
    whole = weights_of(segmentation(), tmp_path / "whole")
    assert same(whole, weights_of(segmentation(memory_gb=0), tmp_path / "other"))


def test_prediction_asks_for_no_mask_and_no_column_of_the_loss(segmentation, tmp_path):
    weights_of(segmentation(), tmp_path / "run")
    predictor = finetune.load_predictor(tmp_path / "run", trust=["own_task"])
    (only,) = predictor([str(tmp_path / "0.png")])
    assert len(only.values) == 2 * 8 * 12


def test_an_evaluation_of_a_file_reads_masks_and_columns_of_the_loss(segmentation, tmp_path):
    weights_of(segmentation(), tmp_path / "run")
    rows = [{"image": str(tmp_path / f"{n}.png"), "mask": str(tmp_path / f"{n}_mask.png"),
             "weight": 1} for n in range(3)]  # fmt: skip
    path = tmp_path / "more.json"
    path.write_text(json.dumps(rows))
    found = finetune.evaluate(tmp_path / "run", source=str(path), trust=["own_task"])
    assert found
