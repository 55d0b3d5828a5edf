"""A large table is parsed once, and mapped at every later start; nothing else about it changes."""

import csv
import gzip
import json
import os
import random
import tempfile
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet

from finetune.config.data import DataConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.opening import open_data
from finetune.data.readers.chunks import Chunk, Dialect
from finetune.data.readers.mapped import MappedCells
from finetune.data.readers.mapped_file import ArrowFile
from finetune.data.sources import large_tables
from finetune.data.sources.kept_table import audit_table
from finetune.data.table import Listed
from finetune.errors import DataError
from finetune.store.audit import Audit
from finetune.store.directory import entries, remove_store

WORDS = [f"word{number}" for number in range(500)]
COUNT = 9000
"""Three chunks of a reader."""


def rows_of(seed=0, count=COUNT):
    draw = random.Random(seed)
    for number in range(count):
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
        if number % 100 == 7:
            text = f'two "lines"\nof {text} {chr(233)}'
        yield {"id": number, "text": text, "label": draw.choice(["pos", "neg"])}


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)


def write_gzip(path, rows):
    plain = path.with_suffix("")
    write_csv(plain, rows)
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()


def write_json(path, rows):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=5000)


FORMS = {
    "t.csv": ("csv", write_csv),
    "t.csv.gz": ("csv", write_gzip),
    "t.jsonl": ("jsonl", write_json),
    "t.parquet": ("parquet", write_parquet),
}


@pytest.fixture(params=FORMS)
def table(request, tmp_path):
    kind, write = FORMS[request.param]
    path = tmp_path / request.param
    write(path, rows_of())
    return {"type": kind, "path": str(path)}


@pytest.fixture
def csv_table(tmp_path):
    write_csv(tmp_path / "t.csv", rows_of())
    return {"type": "csv", "path": str(tmp_path / "t.csv")}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def opened(cache, monkeypatch):
    def open_(source, *, least=0, files=None, **keys):
        monkeypatch.setattr(large_tables, "LEAST_BYTES", least)
        config = DataConfig.model_validate(
            {"source": source, "split": {"validation": 0.2, "test": 0.1}, **keys}
        )
        files = KnownFiles(1.0, cache) if files is None else files
        return open_data(
            config, ClassificationTask(type="classification"), seed=1, trust=(), files=files
        ), files.notes

    return open_


def told(opened):
    """All that a run takes from its data, as plain values."""
    parts = {"train": opened.train, "validation": opened.validation, "test": opened.test}
    return {
        "facts": opened.facts,
        "identity": opened.identity.as_document(),
        "parts": {
            name: (
                part.target.tolist(),
                list(part.table.columns["text"].values),
                [part.table.columns["text"][row] for row in range(0, len(part.table), 97)],
                [part.table.place(row) for row in range(0, len(part.table), 7)],
                part.table.columns["text"].fingerprint(),
            )
            for name, part in parts.items()
        },
    }


def refused(*_, **__):
    raise AssertionError("this is done again")


@pytest.fixture
def unparsed(monkeypatch):
    """Let no reader open the source from here on; its bytes may be hashed."""

    def forbid(path):
        plain = Path.open

        def opens(self, *args, **keywords):
            return refused() if str(self) == path else plain(self, *args, **keywords)

        monkeypatch.setattr(Path, "open", opens)

    return forbid


def test_first_start_later_starts_and_lists_in_memory_give_the_same(table, opened, unparsed):
    (in_memory, _), (first, _) = opened(table, least=1 << 40), opened(table)
    assert isinstance(in_memory.train.table.columns["text"].values, list)
    assert isinstance(first.train.table.columns["text"].values, MappedCells)
    unparsed(table["path"])
    again, notes = opened(table)
    assert told(in_memory) == told(first) == told(again)
    assert notes == []


def test_columns_of_numbers_are_the_same_too(tmp_path, opened):
    rows = [
        {"a": n, "b": n / 7, "c": n % 3 == 0, "label": "xyz"[n % 3], "other": None}
        for n in range(5000)
    ]
    write_parquet(tmp_path / "n.parquet", rows)
    source = {"type": "parquet", "path": str(tmp_path / "n.parquet")}
    found = []
    for least in (1 << 40, 0, 0):
        data, _ = opened(source, least=least, inputs=["a", "b", "c"], target="label")
        columns = data.train.table.columns.values()
        found.append((data.identity.as_document(), [c.values.tolist() for c in columns]))
    assert found[0] == found[1] == found[2]


def test_cells_of_a_csv_file_that_are_numbers_are_the_same_too(tmp_path, opened):
    lines = [f"{n},{n / 7},{'' if n % 3 else n % 5},{n % 4}" for n in range(5000)]
    (tmp_path / "n.csv").write_text("\n".join(["a,b,c,label", *lines]) + "\n")
    source = {"type": "csv", "path": str(tmp_path / "n.csv")}
    keys = {"inputs": ["a", "b", "c"], "target": "label"}
    keys["transforms"] = [{"type": "fill", "columns": ["c"], "with": "median"}]
    found = []
    for least in (1 << 40, 0, 0):
        data, _ = opened(source, least=least, **keys)
        found.append((data.identity.as_document(), data.facts.kinds, data.train.target.tolist()))
    assert found[0] == found[1] == found[2]


def test_hashes_of_rows_are_made_once(csv_table, opened, monkeypatch):
    first, _ = opened(csv_table)
    monkeypatch.setattr("finetune.data.table.content_of", refused)
    again, _ = opened(csv_table)
    assert first.identity.as_document() == again.identity.as_document()


def test_other_inputs_of_a_kept_table_have_hashes_of_their_own(csv_table, opened):
    keys = {"inputs": ["text", "id"], "target": "label"}
    # A number that is tokenized is read as text: as 007 it would be another one than 7.
    step = {"type": "tokenize", "tokenizer": "none"}
    as_text = {"transforms": [step | {"column": "id"}, step | {"column": "text"}]}
    opened(csv_table)
    for more in (keys, keys | as_text, keys):
        data, _ = opened(csv_table, **more)
        in_memory, _ = opened(csv_table, least=1 << 40, **more)
        assert data.identity.as_document() == in_memory.identity.as_document()


def test_a_changed_file_is_parsed_again_though_size_and_time_are_as_before(
    csv_table, opened, cache
):
    path = Path(csv_table["path"])
    opened(csv_table)
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"word1 ", b"word2 "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (again, _), (in_memory, _) = opened(csv_table), opened(csv_table, least=1 << 40)
    assert told(again) == told(in_memory)
    # The old table is gone: one file has one table, however often it changes.
    assert len(entries(cache)) == 1


def test_hashes_of_an_older_table_are_not_those_of_the_one_that_replaced_it(
    csv_table, opened, cache
):
    path = Path(csv_table["path"])
    opened(csv_table)
    (hashes,) = entries(cache)[0].folder.glob("hashes-*")
    name, content = hashes.name, hashes.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"word1 ", b"word2 "))
    opened(csv_table)
    # As a process would do that has the old table mapped and is slower.
    (entries(cache)[0].folder / name).write_bytes(content)
    (again, _), (in_memory, _) = opened(csv_table), opened(csv_table, least=1 << 40)
    assert told(again) == told(in_memory)


def test_a_file_that_was_only_touched_is_not_parsed_again(csv_table, opened, unparsed):
    first, _ = opened(csv_table)
    os.utime(csv_table["path"], (1, 1))
    unparsed(csv_table["path"])
    assert told(opened(csv_table)[0]) == told(first)


def test_a_touched_file_is_not_parsed_again_where_the_cache_cannot_be_written(
    csv_table, opened, unparsed, cache
):
    first, _ = opened(csv_table)
    (record,) = entries(cache)[0].folder.glob("table.json")
    before = record.read_bytes()
    # A folder of this name keeps the file from being written, also for the superuser.
    record.with_name(f".table.json.tmp-{os.getpid()}").mkdir()
    os.utime(csv_table["path"], (1, 1))
    unparsed(csv_table["path"])
    assert told(opened(csv_table)[0]) == told(first)
    assert record.read_bytes() == before


def test_a_file_whose_state_is_known_is_not_read_at_all(csv_table, opened, monkeypatch):
    monkeypatch.setattr("finetune.data.hashes.contents._RACY_NS", -(10**9))
    monkeypatch.setattr("finetune.data.hashes.contents._TICK_NS", 2**63)
    first, _ = opened(csv_table)
    monkeypatch.setattr(large_tables, "read_contents", refused)
    assert told(opened(csv_table)[0]) == told(first)


def flipped(path):
    raw = bytearray(path.read_bytes())
    # At some places of it: what stands at one of them may not matter.
    for part in range(20, 80):
        raw[len(raw) * part // 100] ^= 1
    path.write_bytes(raw)


def misspelt(path):
    path.write_bytes(path.read_bytes().replace(b"word1 ", b"word2 ", 1))


DAMAGE = {
    "a letter of the cells": lambda folder: misspelt(folder / "table.arrow"),
    "bits of the cells": lambda folder: flipped(folder / "table.arrow"),
    "half of the cells": lambda folder: os.truncate(folder / "table.arrow", 10_000),
    "no cells": lambda folder: (folder / "table.arrow").unlink(),
    "bits of the record": lambda folder: flipped(folder / "table.json"),
    "no record": lambda folder: (folder / "table.json").unlink(),
    "bits of the hashes": lambda folder: flipped(next(folder.glob("hashes-*"))),
    "half of the hashes": lambda folder: os.truncate(next(folder.glob("hashes-*")), 999),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_in_the_cache_is_made_again(csv_table, opened, cache, damage):
    whole = told(opened(csv_table)[0])
    DAMAGE[damage](entries(cache)[0].folder)
    assert told(opened(csv_table)[0]) == whole
    assert told(opened(csv_table)[0]) == whole


ODD = {
    "lists": ([{"text": "a", "label": ["x"]}], "column 'label' holds list in its first rows"),
    "half a character": ([{"text": "\ud800", "label": "x"}], "column 'text': "),
    "several types": (
        [{"text": "a", "label": 1}, {"text": "b", "label": 1.5}],
        "column 'label' holds int and float",
    ),
    "a column that comes late": (
        [{"text": "a", "label": 1, "weight": 2}],
        "its first rows have no column 'weight'",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_table_that_arrow_cannot_hold_is_read_into_memory_and_that_is_told(
    tmp_path, cache, monkeypatch, odd
):
    rows, reason = ODD[odd]
    path = tmp_path / "t.jsonl"
    first = [] if odd == "lists" else [{"text": "b", "label": rows[0]["label"]}] * 5000
    path.write_text("".join(json.dumps(row) + "\n" for row in [*first, *rows]))
    read = []
    for least in (1 << 40, 0):
        files = KnownFiles(1.0, cache)
        monkeypatch.setattr(large_tables, "LEAST_BYTES", least)
        wanted = {"text", "label", "weight"}
        read.append(large_tables.read_large_tables([path], Dialect(), "json", wanted, files))
    assert read[0].columns == read[1].columns
    assert read[0].places == read[1].places
    assert len(files.notes) == 1
    assert f"t.jsonl is read into memory: {reason}" in files.notes[0]
    assert entries(cache) == []


def test_without_room_in_the_cache_the_table_is_mapped_for_one_run(csv_table, opened, cache):
    in_memory, _ = opened(csv_table, least=1 << 40)
    for disk_gb, told_of in ((1e-6, "the budget has"), (0, None)):
        files = KnownFiles(disk_gb, cache)
        data, notes = opened(csv_table, files=files)
        assert isinstance(data.train.table.columns["text"].values, MappedCells)
        assert told(data) == told(in_memory)
        assert [told_of in note for note in notes] == ([True] if told_of else [])
    assert entries(cache) == []


def test_a_cache_that_cannot_be_used_is_told_and_the_table_is_mapped(csv_table, opened, tmp_path):
    (tmp_path / "taken").write_text("")
    files = KnownFiles(1.0, tmp_path / "taken")
    data, notes = opened(csv_table, files=files)
    assert isinstance(data.train.table.columns["text"].values, MappedCells)
    assert len(notes) == 1
    assert "is parsed at every start" in notes[0]


def test_an_error_names_row_and_line_and_leaves_no_table(tmp_path, opened, cache):
    path = tmp_path / "t.csv"
    write_csv(path, rows_of())
    with path.open("a") as file:
        file.write("1,2\n")
    with pytest.raises(DataError, match=r"t\.csv:\d+: holds 2 values where") as first:
        opened({"type": "csv", "path": str(path)}, least=1 << 40)
    with pytest.raises(DataError) as again:
        opened({"type": "csv", "path": str(path)})
    assert str(first.value) == str(again.value)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_tables_of_a_folder_are_one_table(tmp_path, opened, unparsed):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(3):
        write_csv(folder / f"part-{number}.csv", rows_of(number, 2000 + number))
    source = {"type": "csv", "path": str(folder)}
    (in_memory, _), (first, _) = opened(source, least=1 << 40), opened(source)
    unparsed(str(folder / "part-1.csv"))
    again, _ = opened(source)
    assert told(in_memory) == told(first) == told(again)
    assert "part-2.csv" in again.train.table.place(len(again.train.table) - 1)


def test_a_kept_table_is_listed_verified_and_cleared_like_a_store(csv_table, opened, cache):
    opened(csv_table)
    (entry,) = entries(cache)
    assert entry.meta.facts == {"table": "t.csv"}
    assert entry.meta.layout.num_rows == COUNT
    assert audit_table(cache, entry) == Audit(COUNT, 0, ())
    assert told(opened(csv_table)[0])
    assert remove_store(cache, entry.key)
    assert entries(cache) == []


def test_cells_are_those_of_a_list_in_every_way_that_they_are_read():
    draw = random.Random(0)
    cells = [draw.choice(["", "a", "bc", chr(233)]) for _ in range(10_000)]
    with tempfile.TemporaryFile() as file:
        arrow = ArrowFile(file)
        for start in range(0, len(cells), 3000):
            some = cells[start : start + 3000]
            arrow.write(Chunk({"c": some}, ("c",), (), len(some)))
        mapped = arrow.columns()["c"]
    rows = torch.randperm(len(cells))[:5000]
    for values, column in (
        (cells, Listed(mapped, "text")),
        ([cells[row] for row in rows.tolist()], Listed(mapped, "text").take(rows)),
        (
            [cells[row] for row in rows[10:20]],
            Listed(mapped, "text").take(rows).take(torch.arange(10, 20)),
        ),
    ):
        plain = Listed(values, "text")
        assert list(column.values) == values
        assert [column[row] for row in range(-5, 5)] == [values[row] for row in range(-5, 5)]
        assert list(column.values[3:9]) == values[3:9]
        assert len(column) == len(values)
        assert [*column.digests()] == [*plain.digests()]
        assert column.distinct().values == plain.distinct().values
        assert column.distinct().numbers.tolist() == plain.distinct().numbers.tolist()
    with pytest.raises(IndexError):
        mapped[len(cells)]


def test_texts_of_a_saved_data_set_stay_in_its_file(tmp_path, opened, monkeypatch):
    rows = [{**row, "label": row["label"] == "pos"} for row in rows_of()]
    features = datasets.Features(
        id=datasets.Value("int64"),
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["no", "yes"]),
    )
    # Shuffled: its rows are then in another order than those of its file.
    saved = datasets.Dataset.from_list(rows, features=features).shuffle(seed=0)
    saved.save_to_disk(tmp_path / "saved")
    source = {"type": "huggingface", "path": str(tmp_path / "saved")}
    in_memory, _ = opened(source)
    monkeypatch.setattr("finetune.data.sources.hub.LEAST_BYTES", 0)
    mapped, _ = opened(source)
    assert isinstance(in_memory.train.table.columns["text"].values, list)
    assert isinstance(mapped.train.table.columns["text"].values, MappedCells)
    assert told(in_memory) == told(mapped)


def test_a_text_without_value_in_a_saved_data_set_is_named(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("finetune.data.sources.hub.LEAST_BYTES", 0)
    rows = [{"text": "a" if row != 70 else None, "label": "xy"[row % 2]} for row in range(100)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="column 'text' has no value in row 71 of"):
        opened({"type": "huggingface", "path": str(tmp_path / "saved")})
