"""A kill while a table is read for the first time leaves nothing that a later start trusts."""

import csv
import os
import signal

import pytest

from finetune.data.hashes.known_files import KnownFiles
from finetune.data.readers.chunks import Dialect
from finetune.data.sources import large_tables

COUNT = 20_000
KILLED = -signal.SIGKILL


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(large_tables, "LEAST_BYTES", 0)
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"text number {number}", number % 3] for number in range(COUNT))
    return path


def read(table, cache):
    found = large_tables.read_large_tables(
        [table], Dialect(), "separated", {"text", "label"}, KnownFiles(1.0, cache)
    )
    return found, {name: list(column.values) for name, column in found.columns.items()}


def killed_after(calls, function):
    """Return `function`, which ends its process by a kill at one of its calls."""
    left = [calls]

    def counted(*args, **keywords):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **keywords)

    return counted


def kill_at_row(row):
    plain = csv.reader

    class Reader:
        def __init__(self, *args, **keywords):
            self._reader, self._left = plain(*args, **keywords), row

        line_num = property(lambda self: self._reader.line_num)

        def __iter__(self):
            return self

        def __next__(self):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return next(self._reader)

    csv.reader = Reader


def kill_at(name):
    def prepare(calls):
        setattr(os, name, killed_after(calls, getattr(os, name)))

    return prepare


# Every moment at which something goes to the disk, and moments while rows are parsed.
MOMENTS = [
    *((kill_at_row, row) for row in (1, 5000, 12_345, COUNT)),
    *((kill_at("fsync"), calls) for calls in range(1, 12)),
    *((kill_at("rename"), calls) for calls in range(1, 4)),
]


@pytest.mark.parametrize(("prepare", "when"), MOMENTS)
def test_after_a_kill_the_table_is_whole_again_and_no_folder_is_left(
    table, tmp_path, prepare, when
):
    cache = tmp_path / "cache"
    whole = {name: list(c.values) for name, c in read(table, tmp_path / "other")[0].columns.items()}
    if (child := os.fork()) == 0:
        prepare(when)
        read(table, cache)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    for _ in range(2):
        assert read(table, cache)[1] == whole
    assert len([path for path in cache.iterdir() if path.name != ".lock"]) == 1


@pytest.mark.slow
def test_the_moments_are_really_met(table, tmp_path):
    codes = []
    for number, (prepare, when) in enumerate(MOMENTS):
        if (child := os.fork()) == 0:
            prepare(when)
            read(table, tmp_path / str(number))
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes.count(KILLED) >= 10
