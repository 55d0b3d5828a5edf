"""The store directory: least recently used stores are removed first, those in use never."""

import os
import shutil

import pytest
import torch

from finetune.store.audit import Audit, audit
from finetune.store.directory import cache_root, entries, remove_store
from finetune.store.store import RowSpec, StoreError

MIB = 1 / 1024
ROW = {"x": RowSpec((1 << 18,), "float32")}
"""A row is 1 MiB."""


@pytest.fixture
def shelved(open_store):
    """Make a full store of 4 MiB, last used so many seconds ago, and leave it open or not."""

    def make(key, ago, *, is_open=False):
        store = open_store(key, specs=ROW, num_rows=4)
        store.write(torch.arange(4), {"x": torch.randn(4, 1 << 18)})
        folder = store._claim.folder
        if not is_open:
            store.close()
        used = os.stat(folder / "lock").st_mtime - ago  # noqa: PTH116
        os.utime(folder / "lock", (used, used))
        return store

    return make


def keys(root):
    return [entry.key for entry in entries(root)]


def test_the_longest_unused_store_makes_room_and_the_run_says_so(open_store, shelved, tmp_path):
    for key, ago in (("old", 50), ("older", 100), ("new", 10)):
        shelved(key, ago)
    store = open_store("next", specs=ROW, num_rows=4, disk_gb=13 * MIB)
    assert keys(tmp_path) == ["next", "new", "old"]
    (note,) = store.take_notes()
    assert "older: removed to make room" in note


def test_a_store_that_is_open_stays_however_old(open_store, shelved, tmp_path):
    live = shelved("live", 1000, is_open=True)
    shelved("idle", 10)
    open_store("next", specs=ROW, num_rows=4, disk_gb=9 * MIB)
    assert keys(tmp_path) == ["next", "live"]
    assert live.has(torch.arange(4)).all()
    assert not remove_store(tmp_path, "live")
    live.close()
    assert remove_store(tmp_path, "live")


def test_nothing_is_removed_for_a_store_that_fits_in_no_case(open_store, shelved, tmp_path):
    shelved("live", 1000, is_open=True)
    shelved("idle", 10)
    with pytest.raises(StoreError, match="budget"):
        open_store("next", specs=ROW, num_rows=4, disk_gb=7 * MIB)
    assert keys(tmp_path) == ["idle", "live"]


def test_a_store_that_is_being_filled_counts_as_full(open_store, tmp_path):
    open_store("filling", specs=ROW, num_rows=10)
    with pytest.raises(StoreError, match="budget"):
        open_store("next", specs=ROW, num_rows=4, disk_gb=13 * MIB)


def test_a_store_opened_again_needs_no_room_twice(open_store, shelved, tmp_path):
    shelved("same", 10)
    store = open_store("same", specs=ROW, num_rows=4, disk_gb=5 * MIB)
    assert store.num_valid == 4


def test_a_store_that_has_outgrown_what_was_expected_counts_by_what_it_takes(
    open_store, shelved, tmp_path
):
    ragged = {"t": RowSpec((1, 1 << 16), "float32", ragged=True)}
    store = open_store("long", specs=ragged, num_rows=4)
    # each four times as long as was expected: 4 MiB in place of one
    store.write(torch.arange(4), {"t": torch.randn(4, 4, 1 << 16)}, torch.full((4,), 4))
    store.close()
    shelved("idle", 10)
    open_store("long", specs=ragged, num_rows=4, disk_gb=6 * MIB)
    assert keys(tmp_path) == ["long"]


def test_a_store_that_has_filled_its_budget_is_opened_again(open_store):
    ragged = {"t": RowSpec((1, 1 << 16), "float32", ragged=True)}
    store = open_store("long", specs=ragged, num_rows=4, disk_gb=2 * MIB)
    one, four = {"t": torch.ones(1, 4, 1 << 16)}, torch.tensor([4])
    store.write(torch.tensor([0]), one, four)
    store.write(torch.tensor([1]), one, four)
    with pytest.raises(StoreError, match="outgrows its disk"):
        store.write(torch.tensor([2]), one, four)
    store.close()
    assert open_store("long", specs=ragged, num_rows=4, disk_gb=2 * MIB).num_valid == 2


def test_to_look_at_a_store_asks_no_room_makes_nothing_and_is_no_use(
    open_store, shelved, tmp_path, monkeypatch
):
    for key, ago in (("a", 100), ("b", 10)):
        shelved(key, ago)
    before = entries(tmp_path)
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    for entry in before:
        assert audit(tmp_path, entry) == Audit(4, 0, ())
    assert entries(tmp_path) == before
    assert remove_store(tmp_path, "b")
    assert audit(tmp_path, before[0]) == Audit(0, 0, ("is gone",))
    assert keys(tmp_path) == ["a"]


def test_a_closed_store_is_free_though_a_forked_process_lives(open_store, tmp_path):
    store = open_store("a", specs=ROW, num_rows=4)
    ends, begins = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(begins)
        os.read(ends, 1)  # until the pipe is closed
        os._exit(0)
    try:
        assert entries(tmp_path)[0].in_use
        store.close()
        assert not entries(tmp_path)[0].in_use
    finally:
        os.close(begins)
        os.waitpid(child, 0)
        os.close(ends)


def test_to_use_a_store_makes_it_the_newest(open_store, shelved, tmp_path):
    shelved("a", 100)
    shelved("b", 10)
    open_store("a", specs=ROW, num_rows=4).close()
    assert keys(tmp_path) == ["a", "b"]


def test_what_is_no_store_is_neither_listed_nor_removed(open_store, shelved, tmp_path):
    shelved("idle", 10)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "idle")
    assert keys(tmp_path) == ["idle"]
    for key in ("thesis", "link", "../idle", "none"):
        with pytest.raises(StoreError):
            remove_store(tmp_path, key)
    open_store("next", specs=ROW, num_rows=4, disk_gb=5 * MIB)
    assert (tmp_path / "thesis" / "chapter").read_text() == "x"


def test_an_empty_place_has_no_stores(tmp_path):
    assert entries(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_made_is_told(open_store, tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreError):
        open_store()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/home/me/.cache/finetune/prefix"),
        ({"XDG_CACHE_HOME": "/scratch"}, "/scratch/finetune/prefix"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/finetune/prefix"),
        ({"FINETUNE_CACHE": "/fast", "XDG_CACHE_HOME": "/scratch"}, "/fast"),
        ({"FINETUNE_CACHE": "~/fast"}, "/home/me/fast"),
    ],
    ids=str,
)
def test_the_root_follows_the_environment(monkeypatch, environment, expected):
    for name in ("FINETUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_root()) == expected
