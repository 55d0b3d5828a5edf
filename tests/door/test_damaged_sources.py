"""Files of every kind of source, damaged in every way, are read or refused in one clear line."""

import csv
import io
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from finetune.config.data import DataConfig
from finetune.data.sources import open_source
from finetune.errors import FinetuneError

ROWS = 40
NUMBERS = np.arange(3 * ROWS, dtype=np.float32).reshape(ROWS, 3)
CELLS = [{"x": f'text {n}, "ü"', "y": n / 2, "label": "ab"[n % 2]} for n in range(ROWS)]


def dumped(value):
    return json.dumps(value).encode()


def table(separator):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerows([[*CELLS[0]], *([*row.values()] for row in CELLS)])
    return text.getvalue().encode()


def of_parquet():
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(CELLS), file)
    return file.getvalue()


def of_arrays(*, packed):
    file = io.BytesIO()
    save = np.savez_compressed if packed else np.savez
    save(file, x=NUMBERS, label=np.arange(ROWS) % 2)
    return file.getvalue()


def boxes():
    images = [{"id": n, "file_name": f"{n}.png", "width": 9, "height": 9} for n in range(ROWS)]
    of_image = [
        {"id": n, "image_id": n, "category_id": n % 2, "bbox": [1, 1, 3, 4.5], "iscrowd": 0}
        for n in range(ROWS)
    ]
    kinds = [{"id": n, "name": "ab"[n]} for n in range(2)]
    return dumped({"images": images, "annotations": of_image, "categories": kinds})


SOURCES = {
    "csv": (table(","), {"type": "csv", "path": "t.csv"}),
    "tsv": (table("\t"), {"type": "csv", "path": "t.tsv", "separator": "\t"}),
    "jsonl": (b"\n".join(map(dumped, CELLS)), {"type": "json", "path": "t.jsonl"}),
    "json": (dumped(CELLS), {"type": "json", "path": "t.json"}),
    "parquet": (of_parquet(), {"type": "parquet", "path": "t.parquet"}),
    "arrays": (of_arrays(packed=False), {"type": "arrays", "path": "t.npz"}),
    "packed arrays": (of_arrays(packed=True), {"type": "arrays", "path": "t.npz"}),
    "texts": ("naïve text\nof lines\n".encode() * 20, {"type": "textfolder", "path": "folder"}),
    "boxes": (boxes(), {"type": "coco", "path": "t.json", "folder": "."}),
}  # fmt: skip
"""Contents of a file, and the source that reads it."""


def flipped(raw, draw):
    for place in draw.integers(len(raw), size=4):
        raw[place] ^= 1 << draw.integers(8)
    return raw


def overwritten(raw, draw):
    start = int(draw.integers(len(raw)))
    raw[start : start + 30] = draw.bytes(30)
    return raw


def without_some(raw, draw):
    start = int(draw.integers(len(raw)))
    del raw[start : start + int(draw.integers(1, 60))]
    return raw


def doubled(raw, draw):
    start, end = sorted(draw.integers(len(raw), size=2).tolist())
    return raw[:end] + raw[start:]


def longer_than_it_says(raw, draw):
    place = int(draw.integers(max(1, len(raw) - 8)))
    raw[place : place + 8] = b"\xff" * 8
    return raw


DAMAGE = {
    "cut off": lambda raw, draw: raw[: draw.integers(len(raw))],
    "cut off at the beginning": lambda raw, draw: raw[draw.integers(1, len(raw)) :],
    "empty": lambda raw, draw: b"",
    "zeros": lambda raw, draw: bytes(len(raw)),
    "noise": lambda raw, draw: draw.bytes(len(raw)),
    "bits flipped": flipped,
    "bytes overwritten": overwritten,
    "bytes lost": without_some,
    "a part twice": doubled,
    "all ones": longer_than_it_says,
    "bytes before it": lambda raw, draw: draw.bytes(int(draw.integers(1, 16))) + raw,
    "a page of a web server": lambda raw, draw: b"<html>404 Not Found</html>",
    "zeros at the end": lambda raw, draw: raw[: len(raw) // 2] + bytes(len(raw) // 2),
}


def outcome(folder, name, seed):
    """Damage the file of a source and read all of it; return the line that refuses it, or None."""
    raw, node = SOURCES[name]
    draw = np.random.default_rng([seed, *name.encode()])
    damaged = bytes([*DAMAGE.values()][seed % len(DAMAGE)](bytearray(raw), draw))
    path = folder / node["path"]
    if name == "texts":
        for label in "ab":
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / "1.txt").write_bytes(raw)
        path /= "a/1.txt"
    path.write_bytes(damaged)
    given = node | {"path": str(folder / node["path"])}
    given |= {"folder": str(folder)} if "folder" in node else {}
    config = DataConfig.model_validate({"source": given})
    try:
        read = open_source(config.source, (), (), None)
        for column in read.columns.values():
            for row in range(len(column)):
                # Pixels of images are another file's matter.
                _ = column[row] if name != "boxes" else None
    except FinetuneError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("count", [26, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(tmp_path, name, count):
    refused = 0
    for seed in range(count):
        if (told := outcome(tmp_path, name, seed)) is None:
            continue
        refused += 1
        case = (name, [*DAMAGE][seed % len(DAMAGE)], seed, told)
        first, *others = told.splitlines()
        assert str(tmp_path) in first, case
        assert len(first) <= 500, case
        assert len(others) <= 1, case
        assert "Error(" not in told, case
        assert " at 0x" not in told, case
        assert told.isprintable() or "\n" in told, case
    # Text without a checksum can be damaged in ways that leave it text.
    assert refused > count / 8, name
