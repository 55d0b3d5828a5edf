"""A kept table in use stays, counts as used when it is opened, and is verified as a table."""

import gc
import json
import os
from contextlib import closing

import pytest

from finetune.data.hashes.known_files import KnownFiles
from finetune.data.readers.chunks import Dialect
from finetune.data.sources import large_tables
from finetune.data.sources.kept_table import audit_table, is_table
from finetune.data.table import Unread
from finetune.store.directory import entries, remove_store
from finetune.store.layout import RowSpec
from finetune.store.store import Store, StoreError

COUNT = 3000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(large_tables, "LEAST_BYTES", 0)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def opened(cache, tmp_path):
    def open_(name="t.csv", word="text", wanted=None):
        path = tmp_path / name
        if not path.exists() or word not in path.read_text():
            path.write_text("text,label\n" + f"some {word},a\nanother {word},b\n" * (COUNT // 2))
        files = KnownFiles(1.0, cache)
        read = large_tables.read_large_tables([path], Dialect(), "separated", wanted, files)
        assert files.notes == []
        return read

    return open_


def size_of(cache):
    return sum(entry.size_bytes for entry in entries(cache))


def claim(cache, *, bytes_in_all):
    """Open a store of 1 MiB where all stores together may take some bytes."""
    specs = {"x": RowSpec((1 << 10,), "uint8")}
    disk_gb = bytes_in_all / 2**30
    with closing(Store.open(cache, "f" * 32, specs, 1 << 10, memory_gb=0, disk_gb=disk_gb)):
        pass


def test_a_table_in_use_is_not_removed_for_room_and_later_it_is(cache, opened):
    read = opened()
    room = size_of(cache) + (1 << 19)
    with pytest.raises(StoreError, match="the budget has"):
        claim(cache, bytes_in_all=room + (1 << 19))
    assert entries(cache)[0].in_use
    assert not remove_store(cache, entries(cache)[0].key)
    assert read.columns["text"][COUNT - 1] == "another text"
    del read
    gc.collect()
    assert not entries(cache)[0].in_use
    claim(cache, bytes_in_all=(1 << 20) + (1 << 14))
    assert [is_table(entry) for entry in entries(cache)] == [False]


def test_any_part_of_a_table_that_lasts_keeps_it_in_use(cache, opened):
    cells = opened().columns["label"].values.take
    gc.collect()
    assert entries(cache)[0].in_use
    del cells
    gc.collect()
    assert not entries(cache)[0].in_use


def test_a_table_that_a_later_start_maps_is_in_use_too(cache, opened):
    opened()
    gc.collect()
    read = opened()
    assert entries(cache)[0].in_use
    assert len(read.columns["text"]) == COUNT


def test_of_two_tables_the_one_that_was_opened_last_stays(cache, opened):
    opened("old.csv")
    opened("new.csv")
    for entry in entries(cache):
        # Both written long ago, the one of old.csv first.
        when = 1_000 if entry.meta.facts["table"] == "old.csv" else 2_000
        os.utime(entry.folder / "lock", (when, when))
    opened("old.csv")
    gc.collect()
    largest = max(entry.size_bytes for entry in entries(cache))
    claim(cache, bytes_in_all=(1 << 20) + (1 << 14) + largest)
    left = {entry.meta.facts.get("table") for entry in entries(cache)}
    assert left == {"old.csv", None}


def test_a_table_in_use_is_replaced_when_its_source_changes_and_its_cells_stay(cache, opened):
    before = opened()
    after = opened(word="changed")
    assert len(entries(cache)) == 1
    assert before.columns["text"][0] == "some text"
    assert after.columns["text"][0] == "some changed"


@pytest.fixture
def parsed(monkeypatch):
    """The columns that are asked of readers from here on, once for each table that is parsed."""
    asked = []
    read_tables = large_tables.read_tables

    def counted(paths, dialect, declared, wanted, arrow):
        asked.append(wanted)
        return read_tables(paths, dialect, declared, wanted, arrow)

    monkeypatch.setattr(large_tables, "read_tables", counted)
    return asked


def test_configs_that_use_other_columns_share_one_copy_of_a_table(cache, opened, parsed):
    opened(wanted={"text", "x"})
    opened(wanted={"label"})
    assert parsed == [{"text", "x"}, {"text", "label"}]
    for wanted in ({"text", "y"}, {"label"}, {"text", "label"}, None):
        read = opened(wanted=wanted)
        assert list(read.columns) == ["text", "label"]
        used = [name for name in read.columns if wanted is None or name in wanted]
        cells = {"text": "another text", "label": "b"}
        assert [read.columns[name][1] for name in used] == [cells[name] for name in used]
        for name in cells.keys() - {*used}:
            assert isinstance(read.columns[name].values, Unread)
    assert len(parsed) == 2
    assert len(entries(cache)) == 1


def test_a_changed_table_is_parsed_for_the_columns_in_use_alone(cache, opened, parsed):
    opened(wanted={"text"})
    opened(word="changed", wanted={"label"})
    assert parsed == [{"text"}, {"label"}]
    assert len(entries(cache)) == 1


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "a bit of the cells": ("table.arrow", flip, "table.arrow is damaged"),
    "half of the cells": ("table.arrow", lambda p: os.truncate(p, 999), "table.arrow is damaged"),
    "no cells": ("table.arrow", lambda p: p.unlink(), "table.arrow cannot be read"),
    "a bit of the record": ("table.json", flip, "table.json is missing or damaged"),
    "no record": ("table.json", lambda p: p.unlink(), "table.json is missing or damaged"),
}


def test_a_whole_table_is_verified_as_a_table(cache, opened, command_line):
    opened()
    result = command_line("cache", "verify", "--json")
    (row,) = json.loads(result.out)["stores"]
    assert (row["whole"], row["damaged"], row["notes"]) == (COUNT, 0, [])
    assert "3,000 rows whole, 0 damaged\n" in command_line("cache", "verify").out


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_a_table_is_told_and_the_table_is_made_again(cache, opened, command_line, damage):
    name, hurt, told = DAMAGE[damage]
    opened()
    gc.collect()
    hurt(entries(cache)[0].folder / name)
    said = command_line("cache", "verify").out
    assert f"0 rows whole, 3,000 damaged; {told}" in said
    assert "the table is removed" in said
    assert entries(cache) == []
    assert opened().columns["text"][1] == "another text"
    assert command_line("cache", "verify").out.count("0 damaged") == 1


def test_a_damaged_table_in_use_is_parsed_anew_at_the_next_start(cache, opened):
    read = opened()
    (entry,) = entries(cache)
    flip(entry.folder / "table.arrow")
    (note,) = audit_table(cache, entry).notes
    assert note.endswith("parsed anew at the next start; a process has it open")
    assert opened().columns["text"][0] == "some text"
    assert audit_table(cache, entries(cache)[0]).damaged == 0
    del read


def test_damaged_hashes_of_rows_are_told_and_the_cells_count_as_whole(cache, opened):
    kept = opened().kept
    kept.put("0" * 32, b"some hashes")
    flip(kept.folder / f"hashes-{'0' * 32}")
    found = audit_table(cache, entries(cache)[0])
    assert (found.whole, found.damaged) == (COUNT, 0)
    assert found.notes == (f"hashes-{'0' * 32} is damaged: the hashes of the rows are made again",)
