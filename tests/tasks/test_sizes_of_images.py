"""Images of different sizes in one batch of a detector: it sees each of them as it is."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

import finetune
from finetune.data.media.decoding import image_tensor
from finetune.errors import FinetuneError
from finetune.models.detectors import NO_BOX, OUTSIDE, Detector, sizes_of
from finetune.train.run_data import open_samples

SIZES = [(64, 64), (48, 80), (72, 40), (64, 64), (33, 57), (80, 80), (64, 50), (41, 64)]
"""Height and width."""
ARCHITECTURE = "ssdlite320_mobilenet_v3_large"


@pytest.fixture
def photos(tmp_path):
    """Write images of different sizes, and a table with a box in each."""
    draw = np.random.default_rng(0)
    rows = []
    for number, (height, width) in enumerate(SIZES):
        pixels = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        box = {"bbox": [4, 6, width - 12, height - 14], "label": "ab"[number % 2]}
        rows.append({"image": f"{number}.png", "objects": [box]})
    path = tmp_path / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def detecting(small_config, photos):
    """Make the config of a small detector whose head alone is trained."""

    def make(*transforms, **changes):
        layer = {"name": "net", "type": "torchvision", "architecture": ARCHITECTURE}
        sections = {
            "model": {"layers": [layer | {"output": "boxes", "pretrained": False}]},
            "data": {"source": {"type": "jsonl", "path": str(photos)}, "target": "objects",
                     "split": {"validation": 0.25}, "transforms": list(transforms), "workers": 0},
            "task": {"type": "detection", "threshold": 1e-3},
            "freeze": ["net.backbone"],
            "train": {"steps": 2, "batch_size": 3, "checkpoint": {"best": None}},
        }  # fmt: skip
        return small_config(**sections | changes)

    return make


def test_a_batch_holds_each_image_with_its_bits_and_its_size(detecting, photos):
    flip = {"type": "RandomHorizontalFlip", "p": 1.0, "with": ["objects"]}
    scale = {"type": "ToDtype", "dtype": "float32", "scale": True}
    for transforms in ((), (scale,), (flip, scale), (flip,)):
        samples = open_samples(detecting(*transforms, task={"type": "detection"})).train
        batch = samples.fetch(range(len(samples)))
        images = batch.inputs["image"]
        alone = [samples.fetch([row]).inputs["image"][0] for row in range(len(samples))]
        assert len({tuple(one.shape) for one in alone}) > 3
        assert sizes_of(images) == [tuple(one.shape[1:]) for one in alone]
        for padded, whole in zip(images, alone, strict=True):
            height, width = whole.shape[1:]
            assert torch.equal(padded[:, :height, :width], whole)
            assert bool(padded[:, height:].isnan().all())
            assert bool(padded[:, :, width:].isnan().all())


@pytest.mark.slow
def test_losses_and_detections_are_those_of_torchvision_for_a_list_of_images(photos):
    torch.manual_seed(0)
    theirs = get_model(ARCHITECTURE, weights=None, weights_backbone=None, num_classes=3)
    ours = Detector(theirs)
    # Statistics of a batch move in training, and both networks share them.
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    images = [image_tensor(Image.open(photos.parent / f"{n}.png")) / 255 for n in range(4)]
    batch = torch.full((4, 3, 80, 80), OUTSIDE)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    boxes = torch.tensor([[[4.0, 6, 30, 31, n % 2]] for n in range(4)])
    targets = [{"boxes": one[:, :4], "labels": one[:, 4].long() + 1} for one in boxes]
    theirs.train(), ours.train()
    torch.manual_seed(1)
    expected = theirs(images, targets)
    torch.manual_seed(1)
    found = ours(batch).losses(boxes)
    assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in expected.items()}
    theirs.eval(), ours.eval()
    with torch.no_grad():
        rows, listed = ours(batch), theirs(images)
    for of_image, their in zip(rows, listed, strict=True):
        there = of_image[of_image[:, 5] != NO_BOX]
        is_class = their["labels"] > 0
        assert len(there) == int(is_class.sum()) > 0
        assert torch.equal(there[:, :4], their["boxes"][is_class])


@pytest.mark.slow
def test_a_run_learns_images_of_any_size_and_predicts_boxes_in_their_pixels(
    detecting, tmp_path, heard
):
    flip = {"type": "RandomHorizontalFlip", "with": ["objects"]}
    trainer = finetune.build_trainer(detecting(flip), tmp_path / "run", tracker=heard)
    trainer.fit(quiet=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["proof_intact"]) == ("done", True)
    assert not [line for line in heard.said if "samples of" in line]
    predictor = finetune.load_predictor(tmp_path / "run")
    paths = [str(tmp_path / f"{number}.png") for number in (1, 2)]
    together, alone = predictor(paths), [predictor([path])[0] for path in paths]
    for record, other, (height, width) in zip(together, alone, SIZES[1:3], strict=True):
        assert record.boxes
        assert max(x + wide for x, _, wide, _ in record.boxes) <= width + 1e-3
        assert max(y + high for _, y, _, high in record.boxes) <= height + 1e-3
        assert torch.allclose(*(torch.tensor(one.boxes) for one in (record, other)), atol=1e-2)


def test_a_network_that_is_no_detector_still_refuses_them(small_config, detecting):
    layers = [{"name": "conv", "type": "Conv2d", "out_channels": 2, "kernel_size": 3}]
    with pytest.raises(FinetuneError, match="differ in shape"):
        open_samples(detecting(model={"layers": layers}))
