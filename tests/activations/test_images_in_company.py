"""Detectors: rows of frozen layers hold only where no image of a batch is padded for another."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.activations.batch_shapes import why_company_decides
from finetune.train.run_data import open_samples
from finetune.train.wire import build_trainer

pytestmark = pytest.mark.slow

ARGS = {
    "min_size": 64, "max_size": 64, "rpn_batch_size_per_image": 16, "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 5, "box_batch_size_per_image": 8,
}  # fmt: skip
FREE = ARGS | {"max_size": 200}
RESIZE = {"type": "Resize", "size": [64, 64], "with": ["objects"]}


@pytest.fixture
def detecting(small_config, tmp_path):
    """Make the config of a Faster R-CNN whose backbone is frozen, on images of such widths."""

    def make(widths, args=ARGS, transforms=(), **changes):
        rows = []
        for number in range(10):
            size = (64, widths[number % len(widths)], 3)
            pixels = np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
            box = {"bbox": [4, 6, 40, 44], "label": "ab"[number % 2]}
            rows.append({"image": f"{number}.png", "objects": [box]})
        (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        layer = {"name": "net", "type": "torchvision", "output": "boxes", "pretrained": False}
        layer |= {"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn", "args": args}
        sections = {
            "model": {"layers": [layer]},
            "data": {"source": {"type": "jsonl", "path": str(tmp_path / "boxes.jsonl")},
                     "target": "objects", "split": {"validation": 0.2}, "workers": 0,
                     "transforms": [*transforms]},
            "task": {"type": "detection"},
            "freeze": ["net.backbone.body"],
            "optimizer": {"type": "SGD", "lr": 0.01},
            "train": {"epochs": 3, "batch_size": 2, "checkpoint": {"best": None}},
            "tracking": {"to": [], "report": False},
            "cache": "auto",
        }  # fmt: skip
        return small_config(**sections | changes)

    return make


@pytest.fixture
def ended(tmp_path, heard, monkeypatch):
    """Train a config; return its weights, how many samples were answered, and what was told."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))

    def train(config, run):
        trainer = build_trainer(config, tmp_path / run, tracker=heard)
        trainer.fit(quiet=True)
        told = [line for line in heard.said if line.startswith("activation cache")]
        return trainer.model.state_dict(), trainer.cache.statistics.answered, told

    return train


@pytest.mark.parametrize(
    ("widths", "transforms"),
    [((64,), ()), ((64, 75), ()), ((64, 130), (RESIZE,))],
    ids=["of one size", "brought to one size by the network", "brought to one size by a step"],
)
def test_a_frozen_backbone_is_answered_and_changes_no_bit(
    always, detecting, ended, widths, transforms
):
    args = FREE if transforms else ARGS
    cached, answered, _ = ended(detecting(widths, args, transforms), "cached")
    plain, none, _ = ended(detecting(widths, args, transforms, cache="off"), "plain")
    assert answered > 0 == none
    assert all(torch.equal(cached[name], plain[name]) for name in plain)


def test_images_of_other_sizes_are_not_cached_and_plan_and_train_say_why(
    always, detecting, ended, command_line, tmp_path
):
    config = detecting((64, 130), FREE)
    _, answered, told = ended(config, "run")
    assert answered == 0
    why = (
        "not stored, a batch pads images to its largest one, and they differ in size (64 x 64, "
        "64 x 130): the outputs of a sample depend on the others of its batch; {type: Resize, "
        "size: [H, W], with: [TARGET]} brings all to one size"
    )
    assert told == [f"activation cache: {why}"]
    planned = command_line("plan", tmp_path / "run" / "config.yaml")
    assert planned.code == 0, planned.err
    assert why in " ".join(planned.out.split())


def test_what_a_step_makes_of_sizes_may_not_be_known_beforehand(detecting):
    grown = {"type": "RandomZoomOut", "with": ["objects"]}
    flipped = {"type": "RandomHorizontalFlip", "with": ["objects"]}
    for step, sizes in ((grown, None), (flipped, {(64, 64), (64, 130)})):
        config = detecting((64, 130), FREE, [step], cache={"use": "auto", "views": 2})
        assert open_samples(config).train.image_sizes == sizes
        network = torch.nn.Module()
        why = why_company_decides(network, [open_samples(config).train])
        assert ("not known beforehand" if sizes is None else "(64 x 64, 64 x 130)") in why


def test_a_last_step_to_one_size_makes_sizes_known_whatever_comes_before(detecting):
    grown = {"type": "RandomZoomOut", "with": ["objects"]}
    config = detecting((64, 130), FREE, [grown, RESIZE], cache={"use": "auto", "views": 2})
    assert open_samples(config).train.image_sizes == {(64, 64)}


def test_the_size_of_an_image_counts_where_another_one_of_that_size_is_skipped(detecting, tmp_path):
    config = detecting((64, 64, 130), FREE)
    data = config.data.model_copy(update={"on_error": "skip", "split": None})
    config = config.model_copy(update={"data": data})
    # Its header can be read, its pixels cannot.
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    assert open_samples(config).train.image_sizes == {(64, 64), (64, 130)}
