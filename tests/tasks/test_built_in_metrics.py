"""Metrics that are given by name are those of scikit-learn and COCO on 200 random cases.

Among them are splits of one sample, classes and labels that no sample has, images without boxes.
Those of entities, masks, pairs and answers have such tests beside their tasks.
"""

from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from compared_metrics import CASES, compare, task_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics as sk

from finetune.data.batches import Batch
from finetune.models.detectors import NO_BOX

NAMES = ["accuracy", "f1", "precision", "recall", "auroc"]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.slow
def test_those_of_classes():
    def macro(function):
        return lambda z, y: function(
            y, z.argmax(1), labels=[0, 1, 2], average="macro", zero_division=0
        )

    references = {
        "accuracy": lambda z, y: sk.accuracy_score(y, z.argmax(1)),
        "f1": macro(sk.f1_score),
        "precision": macro(sk.precision_score),
        "recall": macro(sk.recall_score),
        "auroc": lambda z, y: sk.roc_auc_score(y, softmax(z), multi_class="ovr"),
    }

    # Rounding makes other ties of probabilities there.
    def draw(random):
        samples = random.integers(1, 30)
        logits = random.normal(size=(samples, 3)).astype(np.float32) * 3
        return logits, random.integers(random.integers(1, 4), size=samples)

    defined = compare(task_of("classification", NAMES, classes=3), draw, references)
    assert defined["accuracy"] == CASES
    # The others are left out where a class has no sample.
    assert all(20 < defined[name] < CASES for name in NAMES[1:])


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.2])
def test_those_of_labels(threshold):
    def said(logits):
        return (1 / (1 + np.exp(-logits)) >= threshold).astype(int)

    def macro(function):
        return lambda z, y: function(y, said(z), average="macro", zero_division=0)

    references = {
        "accuracy": lambda z, y: (said(z) == y).mean(),
        "f1": macro(sk.f1_score),
        "precision": macro(sk.precision_score),
        "recall": macro(sk.recall_score),
        "auroc": lambda z, y: sk.roc_auc_score(y, z, average="macro"),
    }

    def draw(random):
        samples = random.integers(1, 25)
        logits = random.normal(size=(samples, 3)).round(1).astype(np.float32) * 3
        return logits, (random.random((samples, 3)) < random.random()).astype(np.float32)

    task = task_of("multilabel", NAMES, classes=3, threshold=threshold)
    defined = compare(task, draw, references)
    assert defined["accuracy"] == CASES
    assert all(50 < defined[name] < CASES for name in NAMES[1:])


@pytest.mark.parametrize("width", [1, 2])
def test_those_of_numbers(width):
    references = {
        "mse": lambda z, y: sk.mean_squared_error(y, z),
        "rmse": lambda z, y: np.sqrt(sk.mean_squared_error(y, z)),
        "mae": lambda z, y: sk.mean_absolute_error(y, z),
        "r2": lambda z, y: sk.r2_score(y, z),
    }

    def draw(random):
        shape, scale = (random.integers(1, 25), width), random.choice([0.0, 1.0, 50.0])
        target = random.normal(size=shape) * scale + random.choice([0.0, 7.0])
        outputs = target + random.normal(size=shape)
        return outputs.astype(np.float32), target.astype(np.float32)

    defined = compare(task_of("regression", list(references)), draw, references)
    assert defined["mse"] == defined["rmse"] == defined["mae"] == CASES
    # Left out where all targets are equal.
    assert 50 < defined["r2"] < CASES


BOXES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large",
         "mar_1", "mar_10", "mar_100"]  # fmt: skip
"""In the order of `COCOeval.stats`."""


def drawn_boxes(random):
    """Boxes `(x, y, X, Y)` of two classes in a few images, and detections near them or anywhere."""
    boxes, said = [], []
    for _ in range(random.integers(1, 5)):
        count = random.integers(0, 4)
        corner, size = random.uniform(0, 60, (count, 2)), random.uniform(4, 150, (count, 2))
        there = np.hstack([corner, corner + size]).round(1)
        kinds = random.integers(random.integers(1, 3), size=count)
        moved = there + random.normal(size=there.shape) * size.repeat(2, 1) / 20
        found = np.vstack([moved, there[:1], np.tile([5, 5, 40, 30], (random.integers(0, 3), 1))])
        labels = np.concatenate([kinds, kinds[:1], [0] * (len(found) - count - len(there[:1]))])
        scores = random.choice([0.9, 0.5, 0.2], size=len(found)).astype(np.float32)
        boxes.append((there.astype(np.float32), kinds))
        said.append((found.astype(np.float32), scores, labels))
    return boxes, said


def padded(rows, width):
    """Rows of each image in one tensor, filled with boxes that are none."""
    filled = torch.zeros(len(rows), max(map(len, rows)) + 1, width)
    filled[..., -1] = NO_BOX
    for number, row in enumerate(rows):
        filled[number, : len(row)] = torch.as_tensor(row)
    return filled


def of_coco(boxes, said):
    """The figures of pycocotools, from documents as COCO writes them."""

    def entry(image, box, kind, **more):
        x, y, right, bottom = map(float, box)
        size = {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
        return {"image_id": image, "category_id": int(kind), "iscrowd": 0, **size, **more}

    truth, found = COCO(), COCO()
    entries = [entry(n, *one) for n, (b, k) in enumerate(boxes) for one in zip(b, k, strict=True)]
    guesses = [
        entry(n, box, kind, score=float(score))
        for n, (b, s, k) in enumerate(said)
        for box, score, kind in zip(b, s, k, strict=True)
    ]
    for document, some in ((truth, entries), (found, guesses)):
        document.dataset = {
            "images": [{"id": n} for n in range(len(boxes))],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": [{**one, "id": number + 1} for number, one in enumerate(some)],
        }
        document.createIndex()
    counted = COCOeval(truth, found, "bbox")
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    return dict(zip(BOXES, counted.stats, strict=False))


@pytest.mark.slow
def test_those_of_boxes():
    task, defined = task_of("detection", BOXES, classes=2), Counter()
    for seed in range(CASES):
        boxes, said = drawn_boxes(np.random.default_rng(seed))
        there = padded([np.column_stack(one) for one in boxes], 5)
        outputs = padded([np.column_stack(one) for one in said], 6)
        for part in torch.arange(len(boxes)).split(2):
            task.update_metrics(outputs[part], Batch({}, there[part], part))
        figures = task.compute_metrics({})
        with redirect_stdout(StringIO()):
            expected = of_coco(boxes, said)
        wanted = {name: value for name, value in expected.items() if value != -1}
        assert figures == pytest.approx(wanted, abs=1e-6), seed
        defined.update(figures.keys())
    assert all(20 < defined[name] < CASES for name in BOXES)
