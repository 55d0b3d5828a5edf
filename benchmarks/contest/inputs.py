"""The data, read and prepared by hand: what a careful person writes for these three cases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contest.job import Job


@dataclass(frozen=True, slots=True)
class Split:
    """One part of the data, ready for the network. Texts lie filled up to the longest of all."""

    columns: dict[str, Tensor]
    target: Tensor
    lengths: Tensor | None
    """Tokens of each text."""

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the inputs at `rows`, texts cut off behind the longest of them."""
        if self.lengths is None:
            return {name: values[rows] for name, values in self.columns.items()}
        width = self.width(rows)
        return {name: values[rows, :width] for name, values in self.columns.items()}

    def width(self, rows: Tensor) -> int:
        """Return the tokens of the longest text at `rows`."""
        assert self.lengths is not None
        return int(self.lengths[rows].max())


def read_splits(job: Job) -> dict[str, Split]:
    """Read the data of a job, and return its parts."""
    read = {"text": _read_texts, "image": _read_images, "digits": _read_digits}[job.network]
    columns, target, lengths = read(job.options)
    return {
        name: Split(
            {column: values[rows] for column, values in columns.items()},
            target[rows],
            None if lengths is None else lengths[rows],
        )
        for name, rows in job.rows.items()
    }


Read = tuple[dict[str, Tensor], Tensor, Tensor | None]


def _read_texts(options: Mapping[str, Any]) -> Read:
    from transformers import AutoTokenizer  # not needed by the other cases, and slow to import

    folders = sorted(folder for folder in Path(options["data"]).iterdir() if folder.is_dir())
    texts, labels = [], []
    for number, folder in enumerate(folders):
        for file in sorted(folder.iterdir()):
            texts.append(file.read_text(options["encoding"], options["errors"]))
            labels.append(number)
    tokenizer = AutoTokenizer.from_pretrained(options["weights"])
    encoded = tokenizer(texts, truncation=True, max_length=options["max_length"])
    lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
    columns = {}
    for name, sequences in encoded.items():
        rows = np.zeros((len(texts), int(lengths.max())), np.int64)
        for row, sequence in zip(rows, sequences, strict=True):
            row[: len(sequence)] = sequence
        columns[name] = torch.from_numpy(rows)
    return columns, torch.tensor(labels), lengths


def _read_images(options: Mapping[str, Any]) -> Read:
    from torchvision.transforms.v2 import functional

    table = np.loadtxt(options["data"], delimiter=",", dtype=np.float32)
    grey = torch.from_numpy(table[:, :-1].astype(np.uint8)).reshape(-1, 1, 28, 28)
    images = functional.resize(grey, list(options["size"]), antialias=True)
    images = functional.to_dtype(images, torch.float32, scale=True)
    images = (images - options["mean"]) / options["std"]
    return {"image": images.expand(-1, 3, -1, -1)}, torch.from_numpy(table[:, -1]).long(), None


def _read_digits(options: Mapping[str, Any]) -> Read:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / options["scale"]
    return {"image": images}, torch.from_numpy(bunch.target).long(), None
