"""Memory that runs out: rows that are on disk too are read from there, others are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.store.layout import Unit
from finetune.store.units import FileUnits

SCRIPT = Path(__file__).with_name("short_of_memory.py")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_DATA and /proc")
@pytest.mark.parametrize(
    "case", ["opens", "opens_without_disk", "grows", "grows_without_disk", "examines", "maps"]
)
def test_rows_that_memory_is_too_small_for_are_read_from_disk_or_refused(tmp_path, case):
    # what is given back goes to the system at once, so that it can be taken again in any size
    returns = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])} | returns
    command = [sys.executable, SCRIPT, case, tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_units_are_the_same_read_through_a_map_and_without(tmp_path):
    (tmp_path / "units").write_bytes(bytes(range(256)) * 3)
    units = FileUnits(tmp_path / "units", Unit(np.dtype("uint8"), (12,)), 0)
    for places in ([3, 4, 5, 0, 63, 62, 3], [], [7], [9, 9, 9, 2, 9]):
        rows = np.array(places, np.int64)
        assert np.array_equal(units._read(rows), units.take(rows))
    assert not units._read(np.array([64, 100])).any()
    units.close()


def test_memory_can_be_left_where_rows_are_on_disk(open_store, known):
    on_both = open_store(memory_gb=1)
    in_memory = open_store("m", memory_gb=1, disk_gb=0)
    for store in (on_both, in_memory):
        known.fill(store, torch.arange(100))
        store.leave_memory()
        known.fill(store, torch.arange(known.NUM_ROWS))
        known.assert_right(store, torch.arange(known.NUM_ROWS))
    assert on_both._memory is None
