"""Small images for each recipe that learns from images, and what the recipe is told."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from recipe_basics import (
    SMALL,
    TWO_STEPS,
    Maker,
    Overrides,
    draw,
    hub,
    image_folder,
    picture,
    saved,
    table,
)
from torchvision.models import resnet50
from transformers import ViTConfig, ViTModel


def pytorch_transfer(made: Path) -> Overrides:
    """Two folders of images, for training and validation; weights are random."""
    return {
        "data.train.path": image_folder(made / "train", ["ants", "bees"]),
        "data.validation.path": image_folder(made / "val", ["ants", "bees"], each=2),
        "model.layers.0.pretrained": "false",
        **TWO_STEPS,
    }


def keras_transfer(made: Path) -> Overrides:
    """Cats and dogs of one part; an epoch of each phase is one step."""
    random = draw()
    features = {
        "image": datasets.Image(),
        "labels": datasets.ClassLabel(names=["cat", "dog"]),
    }
    part = {"image": [picture(random) for _ in range(10)], "labels": [0, 1] * 5}
    return {
        "data.source.path": hub(made, features, train=part),
        "model.layers.0.pretrained": "false",
        "freeze.phases.0.until.epochs": 1,
        "freeze.phases.1.until.epochs": 1,
        "train.epochs": 2,
    }


def fastbook_05(made: Path) -> Overrides:
    """Pets whose names are in those of their files, beside files that are no images."""
    random = draw()
    made.mkdir()
    for number in range(5):
        for breed in ("Abyssinian", "great_pyrenees"):
            picture(random).save(made / f"{breed}_{number}.jpg")
    (made / "Abyssinian_0.mat").write_bytes(b"no image")
    return {
        "data.source.path": made,
        "model.layers.0.pretrained": "false",
        "freeze.phases.0.until.epochs": 1,
        "freeze.phases.1.until.epochs": 1,
        "train.epochs": 2,
    }


def fastbook_06_multilabel(made: Path) -> Overrides:
    """A table of images with several labels each."""
    image_folder(made, ["train"], each=8)
    labels = ["chair", "car", "horse person", "car person"]
    rows = [
        {"fname": f"{number}.jpg", "labels": labels[number % 4], "is_valid": number > 5}
        for number in range(8)
    ]
    return {
        "data.source.path": table(made / "train.csv", rows),
        "data.source.folder": made / "train",
        "model.layers.0.pretrained": "false",
        "freeze.phases.0.until.epochs": 1,
        "freeze.phases.1.until.epochs": 1,
        "train.epochs": 2,
    }


def fastbook_06_points(made: Path) -> Overrides:
    """Images with one point each."""
    image_folder(made, ["01"], each=8)
    rows = [
        {"image": f"01/{number}.jpg", "point": [[20.0 + number, 30.0]], "is_valid": number > 5}
        for number in range(8)
    ]
    (made / "points.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "data.source.path": made / "points.jsonl",
        "data.source.folder": made,
        "model.layers.0.pretrained": "false",
        "freeze.phases.0.until.epochs": 1,
        "freeze.phases.1.until.epochs": 1,
        "train.epochs": 2,
    }


def hf_image_classification(made: Path) -> Overrides:
    """Leaves in three states, and a small ViT."""
    random = draw()
    names = ["angular_leaf_spot", "bean_rust", "healthy"]
    features = {"image": datasets.Image(), "labels": datasets.ClassLabel(names=names)}
    part: dict[str, list[Any]] = {
        "image": [picture(random) for _ in range(6)],
        "labels": [0, 1, 2] * 2,
    }
    folder = hub(made, features, train=part, validation=part)
    return {
        "data.train.path": folder,
        "data.validation.path": folder,
        "model.layers.0.path": saved(ViTModel(ViTConfig(**SMALL)), made / "network"),
        **TWO_STEPS,
    }


def lp_ft_living17(made: Path) -> Overrides:
    """Images of two classes in three parts, and weights in the form of MoCo's file."""
    names = resnet50(weights=None).state_dict()
    body = {f"module.encoder_q.{name}": value for name, value in names.items()}
    places = {
        f"data.{key}.path": image_folder(made / part, ["ape", "bear"], each=2)
        for key, part in {"train": "train", "validation": "val", "test": "target_val"}.items()
    }
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": body}, made / "moco.pth.tar")
    return {
        **places,
        "model.layers.0.weights.path": made / "moco.pth.tar",
        "freeze.probe.epochs": 1,
        "train.epochs": 2,
    }


def surgical_imagenet_c(made: Path) -> Overrides:
    """Images of two classes; weights are random."""
    folder = image_folder(made, ["n01440764", "n01443537"], each=10)
    return {"data.source.path": folder, "model.layers.0.pretrained": "false", **TWO_STEPS}


def siamese_mnist(made: Path) -> Overrides:
    """Pairs of images of 28 x 28 in grey."""
    random = draw()
    made.mkdir()
    for number in range(6):
        picture(random, 28, 28).convert("L").save(made / f"{number}.png")
    rows = [
        {"first": f"{number}.png", "second": f"{(number + 1) % 6}.png", "same": number % 2}
        for number in range(6)
    ]
    return {
        "data.train.path": table(made / "train_pairs.csv", rows),
        "data.validation.path": table(made / "test_pairs.csv", rows),
        **TWO_STEPS,
    }


def ludwig_segmentation(made: Path) -> Overrides:
    """Images and masks of two classes, named by a table."""
    image_folder(made, ["images"], each=6)
    (made / "masks").mkdir()
    random = draw()
    for number in range(6):
        mask = random.integers(0, 2, (48, 64), dtype=np.uint8)
        Image.fromarray(mask).save(made / "masks" / f"{number}.png")
    rows = [
        {"image_path": f"images/{number}.jpg", "mask_path": f"masks/{number}.png"}
        for number in range(6)
    ]
    return {
        "data.source.path": table(made / "camseq.csv", rows),
        "data.transforms.0.size": "[48,64]",
        **TWO_STEPS,
    }


def pytorch_detection(made: Path) -> Overrides:
    """Images of noise with a box each, and the detector from random weights."""
    image_folder(made, ["people"], each=6)
    Image.open(made / "people" / "0.jpg").crop((0, 0, 50, 41)).save(made / "people" / "0.jpg")
    document = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(6)],
        "annotations": [
            {"image_id": number, "category_id": 1, "bbox": [4, 4, 20 + number, 30]}
            for number in range(6)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (made / "boxes.json").write_text(json.dumps(document))
    return {
        "data.source.path": made / "boxes.json",
        "data.source.folder": made / "people",
        "model.layers.0.pretrained": "false",
        "model.layers.0.args": "{min_size: 48, max_size: 64, box_batch_size_per_image: 8}",
        **TWO_STEPS,
    }


MAKERS: dict[str, Maker] = {
    "pytorch_transfer_finetune": pytorch_transfer,
    "pytorch_transfer_extractor": pytorch_transfer,
    "keras_transfer": keras_transfer,
    "fastbook_05_pets": fastbook_05,
    "fastbook_06_multilabel": fastbook_06_multilabel,
    "fastbook_06_points": fastbook_06_points,
    "hf_image_classification": hf_image_classification,
    "lp_ft_living17": lp_ft_living17,
    "surgical_imagenet_c": surgical_imagenet_c,
    "siamese_mnist": siamese_mnist,
    "ludwig_segmentation": ludwig_segmentation,
    "pytorch_detection": pytorch_detection,
}
