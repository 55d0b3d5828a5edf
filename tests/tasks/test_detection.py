"""Detection: boxes as COCO writes them, torchvision's detectors, and what a run makes of both."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from torchvision.ops.misc import FrozenBatchNorm2d

import finetune
from finetune.config.task_keys import DetectionTask
from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.models.detectors import NO_BOX, Detector, Undetected, with_heads_of
from finetune.tasks.build_task import build_task
from finetune.train.run_data import open_samples

SIDE = 64
COLOURS = ((250, 20, 20), (20, 20, 250))
SMALL = {
    "min_size": SIDE, "max_size": SIDE, "box_batch_size_per_image": 8,
    "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10,
}  # fmt: skip
"""Arguments that make a step of Faster R-CNN cheap."""
ALL_FOUND = {"min_size": 64, "score_thresh": 0.0}
"""Arguments with which networks that have learnt nothing find something."""
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture
def squares(tmp_path):
    """Write images of red and blue squares, and a file of COCO; the third image is empty."""
    draw = np.random.default_rng(0)
    images, boxes = [], []
    (tmp_path / "images").mkdir()
    for number in range(12):
        pixels = draw.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8)
        for _ in range(0 if number == 2 else 1 + number % 2):
            side, kind = int(draw.integers(16, 30)), int(draw.integers(2))
            x, y = (int(draw.integers(0, SIDE - side)) for _ in range(2))
            pixels[y : y + side, x : x + side] = COLOURS[kind]
            boxes.append({"image_id": number, "bbox": [x, y, side, side],
                          "category_id": (3, 7)[kind]})  # fmt: skip
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png"})
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    document = {"images": images, "annotations": boxes, "categories": categories}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def detecting(small_config, squares):
    """Make the config of a small detector of which little is trained."""

    def make(*transforms, steps=4, **changes):
        layer = {"name": "net", "type": "torchvision", "architecture": FASTER, "output": "boxes"}
        source = {"type": "coco", "path": str(squares), "folder": str(squares.parent / "images")}
        sections = {
            "model": {"layers": [{**layer, "pretrained": False, "args": SMALL}]},
            "data": {"source": source, "target": "objects", "split": {"validation": 0.25},
                     "transforms": list(transforms), "workers": 0},
            "task": {"type": "detection", "threshold": 0.1},
            "freeze": [{"all": True}, "!net.rpn.head", "!net.roi_heads.box_predictor"],
            # The last weights: a run that ends early evaluates once more, which may be its best.
            "train": {"steps": steps, "batch_size": 4, "checkpoint": {"best": None}},
        }  # fmt: skip
        return small_config(**sections | changes)

    return make


def losses_and_boxes(architecture, **args):
    """Return our detector, torchvision's with the same weights, images, our boxes and theirs."""
    torch.manual_seed(0)
    theirs = get_model(architecture, weights=None, weights_backbone=None, num_classes=4, **args)
    ours = Detector(theirs)
    images = torch.rand(3, 3, 48, 80)
    boxes = torch.zeros(3, 2, 5)
    boxes[..., 4] = NO_BOX
    boxes[0, 0] = torch.tensor([4.0, 4.0, 30.0, 40.0, 0.0])
    boxes[0, 1] = torch.tensor([40.0, 8.0, 70.0, 44.0, 2.0])
    boxes[2, 0] = torch.tensor([10.0, 10.0, 60.0, 40.0, 1.0])
    targets = [
        {"boxes": rows[rows[:, 4] >= 0, :4], "labels": rows[rows[:, 4] >= 0, 4].long() + 1}
        for rows in boxes
    ]
    return ours, theirs, images, boxes, targets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        (FASTER, SMALL),
        pytest.param("ssdlite320_mobilenet_v3_large", {}, id="ssdlite"),
        pytest.param("retinanet_resnet50_fpn", ALL_FOUND, marks=pytest.mark.slow),
        pytest.param("fcos_resnet50_fpn", ALL_FOUND, marks=pytest.mark.slow),
    ],
)
def test_losses_and_detections_are_those_of_torchvision(architecture, args):
    ours, theirs, images, boxes, targets = losses_and_boxes(architecture, **args)
    # Statistics of a batch move in training, and both networks share them.
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    theirs.train(), ours.train()
    torch.manual_seed(1)
    expected = theirs(list(images), targets)
    torch.manual_seed(1)
    given = ours(images)
    assert isinstance(given, Undetected)
    found = given.losses(boxes)
    assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in expected.items()}
    theirs.eval(), ours.eval()
    with torch.no_grad():
        rows, listed = ours(images), theirs(list(images))
    for of_image, their in zip(rows, listed, strict=True):
        there = of_image[of_image[:, 5] != NO_BOX]
        assert len(there)
        is_class = their["labels"] > 0
        assert torch.equal(there[:, :4], their["boxes"][is_class])
        assert torch.equal(there[:, 4], their["scores"][is_class])
        assert torch.equal(there[:, 5].long() + 1, their["labels"][is_class])


@pytest.mark.parametrize(
    ("architecture", "has_frozen_norms", "new"),
    [
        (FASTER, True, ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]),
        ("ssdlite320_mobilenet_v3_large", False,
         [f"head.classification_head.module_list.{n}.1" for n in range(6)]),
    ],
    ids=["two stages", "one stage"],
)  # fmt: skip
def test_a_pretrained_detector_gets_new_maps_for_other_classes_alone(
    architecture, has_frozen_norms, new
):
    made = [
        get_model(architecture, weights=None, weights_backbone=None, num_classes=n) for n in (91, 4)
    ]
    if has_frozen_norms:
        hold_norms(made[0])
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    assert with_heads_of(*made) == new
    after = made[0].state_dict()
    assert after.keys() == before.keys()
    changed = [n for n in before if after[n].shape != before[n].shape]
    assert {name.rpartition(".")[0] for name in changed} == set(new)
    assert all(torch.equal(after[n], before[n]) for n in before if n not in changed)
    with torch.no_grad():
        assert Detector(made[0]).eval()(torch.rand(1, 3, 64, 64)).shape[2] == 6


def hold_norms(network):
    """Hold the norms of the backbone, as torchvision does where a detector is pretrained."""
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                held = FrozenBatchNorm2d(child.num_features)
                held.load_state_dict(child.state_dict())
                setattr(module, name, held)


def test_a_run_learns_boxes_logs_no_validation_loss_and_proves_what_is_frozen(detecting, tmp_path):
    config = detecting({"type": "RandomHorizontalFlip", "with": ["objects"]})
    trainer = finetune.build_trainer(config, tmp_path / "run")
    trainer.fit(quiet=True)
    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    tags = {tag for line in lines for tag in line}
    assert {"train/loss", "validation/map", "validation/map_50"} <= tags
    assert "validation/loss" not in tags
    proof = json.loads((tmp_path / "run" / "freeze_proof.json").read_text())
    assert proof["intact"]
    assert proof["phases"][0]["tensors"] == 320


@pytest.mark.slow
def test_a_run_ends_with_the_same_bits_after_a_stop(detecting, tmp_path):
    flip = {"type": "RandomHorizontalFlip", "with": ["objects"]}

    def weights_of(config, name):
        trainer = finetune.build_trainer(config, tmp_path / name)
        trainer.fit(quiet=True)
        return trainer.model.state_dict()

    whole = weights_of(detecting(flip), "whole")
    weights_of(detecting(flip, steps=1), "cut")
    again = weights_of(detecting(flip), "cut")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
def test_predictions_have_the_form_of_what_is_learnt_in_pixels_of_the_image(
    detecting, tmp_path, command_line
):
    resize = {"type": "Resize", "size": [32, 32], "with": ["objects"]}
    config = detecting(resize, steps=1, task={"type": "detection", "threshold": 1e-6})
    finetune.build_trainer(config, tmp_path / "run").fit(quiet=True)
    predictor = finetune.load_predictor(tmp_path / "run")
    (record,) = predictor([str(tmp_path / "images" / "00.png")])
    ends = [x + width for x, _, width, _ in record.boxes]
    assert record.boxes
    # The network saw 32 pixels.
    assert SIDE / 2 < max(ends) <= SIDE + 1e-3
    assert list(record.probabilities) == sorted(record.probabilities, reverse=True)
    assert set(record.labels) <= {"red", "blue"}
    out = tmp_path / "said.jsonl"
    ended = command_line("predict", tmp_path / "run", tmp_path / "images" / "00.png", "--out", out)
    assert ended.code == 0, ended.err
    row = json.loads(out.read_text())
    assert set(row["objects"][0]) == {"bbox", "label", "probability"}
    ended = command_line("predict", tmp_path / "run", tmp_path / "images" / "00.png", "--out",
                         tmp_path / "said.csv")  # fmt: skip
    assert ended.code == 0, ended.err


def test_boxes_move_with_their_image(detecting):
    flip = {"type": "RandomHorizontalFlip", "p": 1.0, "with": ["objects"]}
    plain, moved = (open_samples(detecting(*t)).train for t in ((), (flip,)))
    rows = torch.arange(len(plain))
    before, after = plain.fetch(rows).target, moved.fetch(rows).target
    there = before[..., 4] != NO_BOX
    assert torch.equal(after[..., 4], before[..., 4])
    assert torch.equal(after[there][:, [0, 2]], SIDE - before[there][:, [2, 0]])
    assert torch.equal(after[there][:, [1, 3]], before[there][:, [1, 3]])


def test_a_box_that_is_cropped_away_is_gone(detecting):
    crop = {"type": "CenterCrop", "size": 8, "with": ["objects"]}
    samples = open_samples(detecting(crop)).train
    target = samples.fetch(torch.arange(len(samples))).target
    there = target[..., 4] != NO_BOX
    assert 0 < int(there.sum()) < there.numel()
    assert bool((target[there][:, 2:4] > target[there][:, :2]).all())
    assert float(target[..., :4].max()) <= 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transforms": [{"type": "Resize", "size": [32, 32]}]}, "Resize moves the pixels"),
        ({"transforms": [{"type": "RandomVerticalFlip"}]}, "not its boxes 'objects'"),
    ],
)
def test_an_image_that_moves_without_its_boxes_is_refused(detecting, changes, message):
    config = detecting(*changes["transforms"])
    with pytest.raises(FinetuneError, match=message):
        open_samples(config)


def test_a_window_is_not_cut(detecting, tmp_path):
    train = {"steps": 2, "batch_size": 4, "micro_batch": 2}
    with pytest.raises(FinetuneError, match="loss 'detector' needs whole"):
        finetune.build_trainer(detecting(train=train), tmp_path / "run")


def cells(tmp_path, value):
    """Write a table of one image with this cell of boxes; return the source."""
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "one.png")
    path = tmp_path / "table.jsonl"
    rows = [{"image": "one.png", "boxes": value}] * 4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": {"type": "jsonl", "path": str(path)}, "target": "boxes"}


GOOD = {"bbox": [4, 4, 8.5, 8], "label": "a"}


@pytest.mark.parametrize(
    "value",
    [
        [GOOD],
        json.dumps([GOOD]),
        {"bbox": [[4, 4, 8.5, 8]], "label": ["a"], "area": [68]},
        [GOOD, {"bbox": [4, 4, 0, 8], "label": "b"}],
        [GOOD, {"bbox": [4, 4, 9, 8], "category": "b", "iscrowd": 1}],
    ],
    ids=["list", "as text", "dict of lists", "without an area", "of a crowd"],
)
def test_cells_hold_boxes_in_several_forms(detecting, tmp_path, value):
    data = open_samples(detecting(data=cells(tmp_path, value)))
    assert data.facts.classes == ("a",)
    target = data.train.fetch([0]).target
    assert target.tolist() == [[[4, 4, 12.5, 12, 0]]]
    is_left_out = isinstance(value, list) and len(value) > 1
    assert is_left_out == any("left out" in note for note in data.facts.notes)


def test_an_image_whose_boxes_are_in_several_rows_is_told(detecting, tmp_path):
    data = cells(tmp_path, [GOOD])
    path = tmp_path / "table.jsonl"
    row = {"image": "one.png", "boxes": [GOOD | {"bbox": [1, 1, 3, 3]}]}
    config = detecting(data=data)
    assert not any("several rows" in note for note in open_samples(config).facts.notes)
    path.write_text(path.read_text() + json.dumps(row))
    [note] = [note for note in open_samples(config).facts.notes if "several rows" in note]
    assert note.startswith(
        f"1 image is in several rows with other boxes, such as in row 1 of {path} and row 5 of"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "needed is a list with"),
        ([{"bbox": [1, 2, 3]}], "needed is a list with"),
        ([{"bbox": [1, 2, 3, 4]}], "needed is a list with"),
        ([{"bbox": [0.1, 0.1, 0.5, 0.5], "label": "a"}], "from 0 to 1; they are counted in pixels"),
        ([{"bbox": [30, 30, 60, 60], "label": "a"}], "the image has 64 x 64 pixels"),
        ([], "no image has a box"),
    ],
)
def test_cells_that_hold_no_boxes_are_told_with_their_row(detecting, tmp_path, value, message):
    with pytest.raises(FinetuneError, match=message):
        open_samples(detecting(data=cells(tmp_path, value)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("categories"), "no list 'categories'"),
        (lambda d: d["annotations"][0].update(image_id=99), "image_id 99, which is not in"),
        (lambda d: d["annotations"][0].update(image_id=[0]), r"image_id \[0\], which is not in"),
        (lambda d: d["annotations"][0].update(category_id=1), "category_id 1, which is not in"),
        (lambda d: d["images"].append(d["images"][0]), "two of its images have one id"),
    ],
)
def test_a_file_of_coco_that_is_none_is_told(detecting, squares, change, message):
    document = json.loads(squares.read_text())
    change(document)
    squares.write_text(json.dumps(document))
    with pytest.raises(FinetuneError, match=message):
        open_samples(detecting())


def test_an_image_that_is_gone_is_passed_over_with_its_boxes(detecting, squares):
    document = json.loads(squares.read_text())
    document["images"][4]["file_name"] = "gone.png"
    squares.write_text(json.dumps(document))
    data = detecting().data.model_dump(exclude_none=True, by_alias=True)
    samples = open_samples(detecting(data=data | {"on_error": "skip"})).train
    assert len(samples.fetch(torch.arange(len(samples))).without_skipped()) == len(samples) - 1
    with pytest.raises(FinetuneError, match="no such image file"):
        open_samples(detecting())


def measured(detections, boxes):
    """Return the figures of one batch."""
    config = DetectionTask(type="detection", metrics=("map", "map_50", "map_large", "mar_100"))
    task = build_task(config, classes=("a", "b"), trust=(), device=torch.device("cpu"))
    left_out = {}
    task.update_metrics(
        torch.tensor(detections), Batch({}, torch.tensor(boxes), torch.arange(len(boxes)))
    )
    return task.compute_metrics(left_out), left_out


def test_figures_of_boxes_are_those_of_coco_and_one_of_no_box_is_left_out():
    nothing = [0.0, 0, 0, 0, 0, NO_BOX]
    detections = [[[0.0, 0, 10, 10, 0.9, 0], nothing], [[0.0, 0, 10, 10, 0.8, 1], nothing]]
    boxes = [[[0.0, 0, 10, 9, 0]], [[0.0, 0, 0, 0, NO_BOX]]]
    figures, left_out = measured(detections, boxes)
    # An overlap of 0.9 is enough for nine of ten thresholds; what is said of the empty image is of
    # a class without boxes, which has no figure.
    assert figures == pytest.approx({"map": 0.9, "map_50": 1.0, "mar_100": 0.9})
    assert left_out == {"map_large": "no image has a box that it counts"}
