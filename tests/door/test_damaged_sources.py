"""Files of every kind of source, damaged in every way, are read or refused in one clear line."""

import csv
import io
import json
import shutil

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from finetune.config.data import DataConfig
from finetune.data.sources.open_source import open_source
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


def of_datasets():
    file = io.BytesIO()
    datasets.Dataset.from_list(CELLS).to_parquet(file)
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
    "parquet of datasets": (of_datasets(), {"type": "parquet", "path": "t.parquet"}),
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
    return told_by(given)


def told_by(source):
    """Read all of a source; return the lines that refuse it, or None."""
    config = DataConfig.model_validate({"source": source})
    try:
        read = open_source(config.source, (), (), None)
        for column in read.columns.values():
            for row in range(len(column)):
                # Pixels of images are another file's matter.
                _ = column[row] if source["type"] != "coco" else None
    except FinetuneError as error:
        return str(error)
    return None


def is_clear(told, named, case):
    """Assert that an error is one line that names a path, and perhaps a hint."""
    first, *others = told.splitlines()
    assert str(named) in first, case
    assert len(first) <= 500, case
    assert len(others) <= 1, case
    assert "Error(" not in told, case
    assert " at 0x" not in told, case
    assert told.isprintable() or "\n" in told, case


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("count", [26, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(tmp_path, name, count):
    refused = 0
    for seed in range(count):
        if (told := outcome(tmp_path, name, seed)) is None:
            continue
        refused += 1
        is_clear(told, tmp_path, (name, [*DAMAGE][seed % len(DAMAGE)], seed, told))
    # Text without a checksum can be damaged in ways that leave it text.
    assert refused > count / 8, name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a folder that `save_to_disk` wrote, by name."""
    kinds = {"x": datasets.Value("string"), "y": datasets.Value("float64")}
    kinds |= {"label": datasets.ClassLabel(names=["a", "b"])}
    kinds |= {"tags": datasets.List(datasets.Value("string"))}
    rows = [{**cells, "label": n % 2, "tags": ["p", "q"]} for n, cells in enumerate(CELLS)]
    made = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    folder = tmp_path_factory.mktemp("data sets") / "one"
    made.save_to_disk(folder, num_shards=2)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def told_by_folder(folder, contents):
    """Return the lines that refuse a saved data set with these files, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    return told_by({"type": "huggingface", "path": str(folder)})


@pytest.mark.parametrize("count", [52, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_file_of_a_saved_data_set_is_read_or_refused_by_name(tmp_path, saved, count):
    refused = 0
    for seed in range(count):
        draw = np.random.default_rng([seed, 7])
        damage = [*DAMAGE][seed % len(DAMAGE)]
        name = [*saved][seed // len(DAMAGE) % len(saved)]
        raw = bytes(DAMAGE[damage](bytearray(saved[name]), draw))
        if told := told_by_folder(tmp_path / "hub", saved | {name: raw}):
            refused += 1
            is_clear(told, tmp_path / "hub", (name, damage, seed, told))
    assert refused > count / 2


ARROW = "data-00000-of-00002.arrow"


def without(name):
    return lambda files: {other: raw for other, raw in files.items() if other != name}


def edited(name, edit):
    """Return what changes the JSON of one file."""
    return lambda files: files | {name: dumped(edit(json.loads(files[name])))}


def names(file):
    return edited("state.json", lambda state: state | {"_data_files": [{"filename": file}]})


def with_features(**features):
    return edited("dataset_info.json", lambda info: info | {"features": features})


def of_another_schema(files):
    """Put other columns into one of the two files."""
    file = io.BytesIO()
    table = pyarrow.table({"x": [1, 2], "z": [1, 2]})
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return files | {ARROW: file.getvalue()}


SPOILT = {
    "no state": (without("state.json"), "state.json: cannot be read: no such file"),
    "no info": (without("dataset_info.json"), "dataset_info.json: cannot be read: no such file"),
    "half of the samples": (without(ARROW), f"{ARROW}: is missing, state.json names it"),
    "no samples": (edited("state.json", lambda state: state | {"_data_files": []}), "no .arrow"),
    "no names": (edited("state.json", lambda state: {}), "state.json: has no list '_data_files'"),
    "no key": (
        edited("state.json", lambda state: {k: state[k] for k in state if k != "_split"}),
        "cannot be read: '_split' is missing",
    ),
    "a file elsewhere": (names("../other.arrow"), "other.arrow' leaves the folder"),
    "a file of the system": (names("/etc/hostname"), "'/etc/hostname' leaves the folder"),
    "a number for a name": (names(3), "state.json: names no .arrow file"),
    "a list for a state": (edited("state.json", lambda state: [state]), "needs a JSON object"),
    "another schema": (of_another_schema, "cannot be read"),
    "another feature": (with_features(x={"dtype": "int64", "_type": "Value"}), "cannot be read"),
    "an odd feature": (with_features(x={"_type": "Odd"}), "Feature type 'Odd' not found"),
    "features that are none": (with_features(x=3), "cannot be read"),
}  # fmt: skip
"""Change of the files, and what is told."""


@pytest.mark.parametrize(("change", "words"), SPOILT.values(), ids=SPOILT)
def test_a_saved_data_set_that_is_not_whole_is_refused_with_its_file(
    tmp_path, saved, change, words
):
    told = told_by_folder(tmp_path / "hub", change(saved))
    assert told, "read"
    assert words in told
    is_clear(told, tmp_path / "hub" if "leaves" not in words else tmp_path, told)


def test_a_label_that_has_no_name_is_refused_with_its_column(tmp_path):
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    table = pyarrow.table({"label": pyarrow.array([0, 1, 2])})
    made = datasets.Dataset(table)
    made.info.features = kinds
    made.save_to_disk(tmp_path / "hub")
    told = told_by({"type": "huggingface", "path": str(tmp_path / "hub")})
    assert "column 'label' cannot be read: " in told
    is_clear(told, tmp_path / "hub", told)


def test_a_column_that_nobody_uses_is_not_read(tmp_path):
    kinds = datasets.Features({"x": datasets.Value("int64"), "kind": datasets.ClassLabel(2)})
    made = datasets.Dataset(pyarrow.table({"x": [0, 1, 2], "kind": [0, 1, 2]}))
    made.info.features = kinds
    made.save_to_disk(tmp_path / "hub")
    given = {"type": "huggingface", "path": str(tmp_path / "hub")}
    assert "column 'kind' cannot be read: " in told_by(given)
    source = DataConfig.model_validate({"source": given}).source
    read = open_source(source, (), (), {"x"})
    assert [*read.columns] == ["x", "kind"]
    assert [*read.columns["x"].values] == [0, 1, 2]
    assert len(read.columns["kind"]) == 3
    with pytest.raises(IndexError, match="that nobody uses"):
        _ = read.columns["kind"][0]


@pytest.mark.parametrize("part", [None, "train"])
def test_a_saved_data_set_of_links_needs_within_to_name_where_they_lead(tmp_path, saved, part):
    hub, store = tmp_path / "hub", tmp_path / "store"
    folder = hub if part is None else hub / part
    folder.mkdir(parents=True)
    store.mkdir()
    (tmp_path / "images").mkdir()
    for name, raw in saved.items():
        is_linked = name.endswith(".arrow")
        ((store if is_linked else folder) / name).write_bytes(raw)
        if is_linked:
            (folder / name).symlink_to(store / name)
    if part is not None:
        (hub / "dataset_dict.json").write_text(json.dumps({"splits": [part]}))
    given = {"type": "huggingface", "path": str(hub)}
    told = told_by(given)
    assert f"leaves the folder '{folder}'" in told
    assert "within: DIR" in told
    assert f"leaves the folder '{tmp_path}/images'" in told_by(
        given | {"within": str(tmp_path / "images")}
    )
    assert told_by(given | {"within": str(tmp_path)}) is None


def test_a_folder_elsewhere_for_names_takes_no_saved_file_away(tmp_path, saved):
    (tmp_path / "images").mkdir()
    (tmp_path / "hub").mkdir()
    for name, raw in saved.items():
        (tmp_path / "hub" / name).write_bytes(raw)
    given = {"type": "huggingface", "path": str(tmp_path / "hub")}
    assert told_by(given | {"within": str(tmp_path / "images")}) is None
