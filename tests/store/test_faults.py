"""Kills, damage and full disks: a store trusts no row that is not whole, and says what was lost."""

import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.store.audit import audit
from finetune.store.directory import entries
from finetune.store.store import RowSpec, StoreError

SCRIPT = Path(__file__).with_name("known_rows.py")
EVERYTHING = torch.arange(300)
FILES = ["seals", "index", "rows-0", "rows-1", "rows-2", "rows-3", "rows-4"]


@pytest.fixture
def filling(tmp_path, started):
    """Start processes that fill the store; those still alive are killed when the test is over."""

    def start(seed):
        command = [sys.executable, SCRIPT, tmp_path, str(seed)]
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        started.append(process)
        return process

    return start


@pytest.fixture
def filled(open_store, known, tmp_path):
    """The folder of a full store that nobody has open."""
    store = open_store()
    known.fill(store, EVERYTHING)
    store.close()
    return tmp_path / "k"


def damage(path, place, change):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([change(byte)]))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_costs_no_more_than_its_row(open_store, known, filled, name):
    size = (filled / name).stat().st_size
    for place in random.Random(0).sample(range(size), 5):
        damage(filled / name, place, lambda byte: byte ^ 16)
        store = open_store()
        there = store.has(EVERYTHING)
        assert (~there).sum() <= 1
        assert len(store.take_notes()) == int((~there).sum())
        known.assert_right(store, there.nonzero().squeeze(1))
        known.fill(store, EVERYTHING)
        known.assert_right(store, EVERYTHING)
        store.close()


def test_one_line_tells_of_damaged_rows(open_store, filled):
    damage(filled / "rows-0", 70, lambda byte: byte ^ 1)
    store = open_store()
    assert store.has(torch.tensor([0, 1])).tolist() == [True, False]
    assert store.take_notes() == ["store k: 1 damaged row is recomputed"]
    assert store.num_valid == 299


def test_swapped_rows_and_lengths_are_found(open_store, known, filled):
    index = np.fromfile(filled / "index", np.int64).reshape(-1, 2)
    index[[10, 19]] = index[[19, 10]]
    index[5, 1] -= 1
    index.tofile(filled / "index")
    store = open_store()
    assert (~store.has(EVERYTHING)).nonzero().squeeze(1).tolist() == [5, 10, 19]


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda size: 0, "has 0 bytes"), (lambda size: size // 3, "bytes, needs")],
    ids=["emptied", "cut short"],
)
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_at_opening(open_store, known, filled, name, change, says):
    os.truncate(filled / name, change((filled / name).stat().st_size))
    store = open_store()
    there = store.has(EVERYTHING)
    assert store.num_valid == there.sum() < 300
    (note,) = store.take_notes()
    assert "recomputed" in note
    # files of ragged rows have no size of their own
    assert name in ("rows-1", "rows-4") or says in note
    known.assert_right(store, there.nonzero().squeeze(1))
    known.fill(store, EVERYTHING)
    known.assert_right(store, EVERYTHING)


def test_a_file_that_has_grown_is_cut_and_its_rows_hold(open_store, known, filled):
    with (filled / "rows-0").open("ab") as file:
        file.write(bytes(1000))
    store = open_store()
    assert store.has(EVERYTHING).all()
    known.assert_right(store, EVERYTHING)


def rewrite_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | changes))


def rewrite_column(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    rewrite_meta(folder, columns=[meta["columns"][0] | changes, *meta["columns"][1:]])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: rewrite_meta(folder, torch="2.10.0"), "made by torch 2.10.0, this is"),
        (lambda folder: rewrite_meta(folder, version=99), "format version 99"),
        (lambda folder: rewrite_meta(folder, num_rows=299), "holds other outputs"),
        (lambda folder: rewrite_meta(folder, key="other"), "holds other outputs"),
        (lambda folder: rewrite_meta(folder, columns=[{"shape": "x"}]), "cannot be read"),
        (lambda folder: rewrite_column(folder, shape=[], ragged=True), "cannot be read"),
        (lambda folder: rewrite_column(folder, stored="float7"), "cannot be read"),
        (lambda folder: rewrite_meta(folder, num_rows=-1), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_bytes(b"\xff{"), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "meta.json").unlink(), "No such file"),
        (lambda folder: (folder / "rows-2").unlink(), "rows-2 is missing"),
        (lambda folder: (folder / "seals").unlink(), "seals is missing"),
    ],
)
def test_a_store_that_is_not_ours_is_made_anew_and_says_why(open_store, known, filled, spoil, says):
    spoil(filled)
    store = open_store()
    assert store.num_valid == 0
    (note,) = store.take_notes()
    assert says in note
    assert "everything is recomputed" in note
    assert len(entries(filled.parent)) == 1
    known.fill(store, EVERYTHING)
    known.assert_right(store, EVERYTHING)


def test_links_are_not_followed(open_store, filled, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(60 * 300))
    (filled / "rows-0").unlink()
    (filled / "rows-0").symlink_to(outside)
    store = open_store()
    assert "rows-0 is missing" in store.take_notes()[0]
    assert outside.read_bytes() == bytes(60 * 300)
    store.close()
    filled.rename(tmp_path / "elsewhere")
    filled.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a folder that finetune made"):
        open_store()


def test_a_copy_under_another_name_is_not_taken_for_the_store_it_was(filled, tmp_path):
    shutil.copytree(filled, tmp_path / "copy")
    damage(tmp_path / "copy" / "rows-0", 70, lambda byte: byte ^ 1)
    (entry,) = (entry for entry in entries(tmp_path) if entry.key == "copy")
    found = audit(tmp_path, entry)
    assert (found.whole, found.notes) == (0, ("meta.json is that of store k",))


def test_a_negative_length_is_a_damaged_row(open_store, known, filled):
    index = np.fromfile(filled / "index", np.int64).reshape(-1, 2)
    index[17, 1] = -1
    index.tofile(filled / "index")
    store = open_store()
    assert (~store.has(torch.cat([EVERYTHING, EVERYTHING]))).nonzero()[:, 0].tolist() == [17, 317]
    assert store.num_damaged == 1
    known.fill(store, EVERYTHING)
    known.assert_right(store, EVERYTHING)


def test_an_append_that_was_torn_between_two_outputs_costs_no_other_row(open_store, known, filled):
    store = open_store()
    with (filled / "rows-1").open("ab") as file:
        file.write(bytes(5 * 6 * 4))  # five tokens of one ragged output, none of the other
    store.discard()
    for _ in range(2):
        store.write(torch.arange(3), *empty(known.SPECS))
        store.close()
        store = open_store()
        assert store.has(torch.arange(3)).all()
        assert store.take_notes() == []


def empty(specs):
    """Return values of three rows without a token, and their lengths."""
    values = {name: torch.zeros(3, *spec.shape, dtype=getattr(torch, spec.dtype))
              for name, spec in specs.items()}  # fmt: skip
    return values, torch.zeros(3, dtype=torch.int64)


def open_files():
    gc.collect()
    listed = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {number for number in listed if Path(f"/proc/self/fd/{number}").exists()}


@pytest.mark.parametrize("spare", range(1, 7))
def test_an_opening_that_runs_out_of_open_files_leaves_none_open(open_store, filled, spare):
    before = open_files()
    free = [number for number in range(1000) if number not in before]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
    try:
        with pytest.raises((StoreError, OSError), match="Too many open files"):
            open_store()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files() == before
    assert open_store().num_valid == 300


def test_rows_without_a_seal_and_seals_without_rows_are_never_trusted(open_store, known, filled):
    """What a machine that loses power may leave: any file as it was before the last writes."""
    for name in FILES:
        before = (filled / name).read_bytes()
        half = len(before) // 2
        (filled / name).write_bytes(before[:half] + bytes(len(before) - half))
        store = open_store()
        known.assert_right(store, store.has(EVERYTHING).nonzero().squeeze(1))
        known.fill(store, EVERYTHING)
        known.assert_right(store, EVERYTHING)
        store.close()


@pytest.mark.slow
def test_two_processes_that_fill_one_store_at_once_both_end_right(open_store, known, filling):
    processes = [filling(seed) for seed in (1, 2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    store = open_store()
    known.assert_right(store, EVERYTHING)
    assert store.take_notes() == []
    assert (store._claim.folder / "rows-1").stat().st_size == 24 * int((EVERYTHING % 9).sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_killed_fill_leaves_no_torn_row_that_is_trusted(open_store, known, filling, seed):
    process = filling(seed)
    assert process.stdout.readline() == b"writing\n"
    time.sleep(random.Random(seed).uniform(0, 0.05))
    process.kill()
    process.wait()
    store = open_store()
    there = store.has(EVERYTHING)
    assert there.sum() == store.num_valid < 300
    assert store.take_notes() == []
    known.assert_right(store, there.nonzero().squeeze(1))
    known.fill(store, EVERYTHING)
    known.assert_right(store, EVERYTHING)


@pytest.mark.slow
def test_a_kill_between_any_two_writes_leaves_no_torn_row_that_is_trusted(open_store, known):
    """Let the system refuse the n-th write, which is where a kill would leave the files."""
    for refused in range(40):
        store = open_store(f"k{refused}")
        known.fill(store, EVERYTHING[:100])
        calls = iter(range(1000))
        write = os.pwrite

        def failing(*args, calls=calls, refused=refused, write=write):
            if next(calls) == refused:
                raise KeyboardInterrupt
            return write(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", failing)
            for part in EVERYTHING[100:].flip(0).split(5):
                try:
                    known.fill(store, part)
                except KeyboardInterrupt:
                    break
        store.close()
        store = open_store(f"k{refused}")
        there = store.has(EVERYTHING)
        assert store.take_notes() == []
        assert 100 <= there.sum() < 300
        known.assert_right(store, there.nonzero().squeeze(1))
        known.fill(store, EVERYTHING)
        known.assert_right(store, EVERYTHING)
        store.close()


def test_a_full_disk_is_told_and_rows_kept_before_stay(open_store, known):
    """A limit on the size of files answers as a full disk does, between two bytes of a write."""
    store = open_store()
    known.fill(store, EVERYTHING[:100])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60 * 150 + 7, hard))
    try:
        with pytest.raises(StoreError, match="too large"):
            known.fill(store, EVERYTHING[100:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.num_valid == 100
    known.assert_right(store, EVERYTHING[:100])
    known.fill(store, EVERYTHING)
    known.assert_right(store, EVERYTHING)


def test_rows_given_up_leave_no_ragged_bytes_behind_for_ever(open_store, known, filled):
    size = (filled / "rows-1").stat().st_size
    for _ in range(3):
        store = open_store()
        store.discard()
        store.close()
        store = open_store()
        known.fill(store, EVERYTHING)
        store.close()
    assert (filled / "rows-1").stat().st_size == size


BOUNDED = """
import re, sys, torch
from pathlib import Path
from finetune.store.store import RowSpec, Store
def own():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) / 1024
specs = {"x": RowSpec((64, 256), "float32")}
store = Store.open(Path(sys.argv[1]), "k", specs, 10_240, memory_gb=0, disk_gb=2)
before = most = own()
for part in torch.randperm(10_240).split(64):
    store.write(part, {"x": part.float()[:, None, None].expand(-1, 64, 256).clone()})
    most = max(most, own())
for part in torch.randperm(10_240).split(64):
    assert torch.equal(store.read(part)["x"][:, 1, 2], part.float())
    most = max(most, own())
print(most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_large_store_is_filled_and_read_in_little_memory(tmp_path):
    """What the process holds of its own counts: pages of the mapped file are the system's."""
    command = [sys.executable, "-c", BOUNDED, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert (tmp_path / "k" / "rows-0").stat().st_size == 640 << 20
    assert float(done.stdout) < 64


def test_a_store_of_one_output_needs_no_index(open_store, tmp_path):
    store = open_store(specs={"x": RowSpec((2,), "float32")}, num_rows=3)
    store.write(torch.tensor([2]), {"x": torch.ones(1, 2)})
    assert {path.name for path in (tmp_path / "k").iterdir()} == {
        "lock", "meta.json", "rows-0", "seals"
    }  # fmt: skip
