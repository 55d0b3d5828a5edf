"""Kills, damage, crowds and full disks while a prefix store is written: no bit of a run changes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("cached_runs.py")


class Runs:
    """A process that starts runs; one line to it, one back."""

    def __init__(self, folder):
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, *orders):
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(place):
    runs = Runs(place)
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def whole(runs):
    """What a run ends with that stores nothing."""
    (end,) = runs({"run": "whole", "cache": "none", "use": "off"})
    assert end["status"] == 0
    return end


@pytest.fixture(scope="module")
def stored(runs, whole):
    """What one ends with that stores, undisturbed."""
    (end,) = runs({"run": "stored", "cache": "stored"})
    assert_right(end, whole)
    assert end["pwrite"] > 200
    return end


def assert_right(end, whole):
    assert end["status"] == 0
    assert end["answered"] > 0
    assert end["weights"] == whole["weights"]
    assert end["metrics"] == whole["metrics"]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_within_a_write_ends_with_the_same_bits_when_started_again(
    runs, whole, stored, seed
):
    draw = random.Random(seed)
    order = {"run": f"killed-{seed}", "cache": f"killed-{seed}"}
    kill = [draw.randrange(stored["pwrite"]), draw.random()]
    (killed,) = runs(order | {"pwrite": kill})
    assert killed["status"] == -signal.SIGKILL
    (end,) = runs(order)
    assert end["weights"] == whole["weights"]
    assert end["metrics"] == whole["metrics"]


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_run_killed_between_its_stores_ends_with_the_same_bits_when_started_again(
    runs, whole, stored, is_done
):
    for number in range(stored["rename"]):
        order = {"run": f"between-{is_done}-{number}", "cache": f"between-{is_done}-{number}"}
        (killed,) = runs(order | {"rename": [number, is_done]})
        assert killed["status"] == -signal.SIGKILL
        (end,) = runs(order)
        assert end["weights"] == whole["weights"]
        assert end["metrics"] == whole["metrics"]


def test_a_run_killed_time_and_again_ends_with_the_same_bits(runs, whole, stored):
    draw, order = random.Random(0), {"run": "again", "cache": "again"}
    for _ in range(5):
        (killed,) = runs(order | {"pwrite": [draw.randrange(120), draw.random()]})
        assert killed["status"] in (-signal.SIGKILL, 0)
    (end,) = runs(order)
    assert end["weights"] == whole["weights"]


def test_runs_that_fill_one_store_at_once_all_end_with_the_same_bits(runs, whole):
    ends = runs(*({"run": f"crowd-{number}", "cache": "crowd"} for number in range(3)))
    for end in ends:
        assert_right(end, whole)


def test_a_run_goes_on_with_the_rows_of_one_that_was_killed(runs, whole, stored):
    (killed,) = runs({"run": "first", "cache": "left", "pwrite": [stored["pwrite"] // 2, 0.5]})
    assert killed["status"] == -signal.SIGKILL
    (end,) = runs({"run": "second", "cache": "left"})
    assert_right(end, whole)
    assert end["recorded"] < stored["recorded"]


def flip_a_bit(folder):
    for path in folder.rglob("rows-*"):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 8]))


def cut_short(folder):
    for path in folder.rglob("rows-*"):
        os.truncate(path, path.stat().st_size // 2 + 3)


def age(folder):
    for path in folder.rglob("meta.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "2.10.0"}))


def swap_rows(folder):
    """Let every row be another one's: right seals in the wrong places."""
    for path in (*folder.rglob("rows-*"), *folder.rglob("seals")):
        rows = path.stat().st_size // 2
        data = path.read_bytes()
        path.write_bytes(data[rows:] + data[:rows])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (flip_a_bit, "damaged row"),
        (cut_short, "damaged rows are recomputed"),
        (age, "made by torch 2.10.0"),
        (swap_rows, "damaged row"),
    ],
    ids=["a flipped bit", "a truncated file", "another torch", "swapped halves"],
)
def test_a_damaged_store_is_recomputed_and_a_line_says_so(runs, place, stored, damage, line):
    name = damage.__name__
    shutil.copytree(place / "stored", place / name)
    damage(place / name)
    changed = {"lr": 0.01}
    whole, end = (
        runs({"run": f"{name}-{use}", "cache": name, "use": use} | changed)[0]
        for use in ("off", "auto")
    )
    assert_right(end, whole)
    told = [said for said in end["said"] if line in said]
    assert told, end["said"]
    # the two phases have stores for three splits each
    assert len(told) <= 6
    assert end["recorded"] > 0
