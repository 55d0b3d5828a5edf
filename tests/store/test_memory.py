"""Memory that runs out: rows are read without it, and take none of the process's own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.store.layout import Unit
from finetune.store.units import FileUnits

SCRIPT = Path(__file__).with_name("short_of_memory.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_DATA and /proc")
@pytest.mark.parametrize("case", ["opens", "grows", "examines", "maps"])
@pytest.mark.parametrize("disk_gb", [0, 1], ids=["without a disk", "on disk"])
def test_rows_that_memory_is_too_small_for_are_written_and_read(tmp_path, case, disk_gb):
    # what is given back goes to the system at once, so that it can be taken again in any size
    returns = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])} | returns
    command = [sys.executable, SCRIPT, case, tmp_path, str(disk_gb)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_units_are_the_same_read_through_a_map_and_without(tmp_path):
    (tmp_path / "units").write_bytes(bytes(range(256)) * 3)
    units = FileUnits(tmp_path / "units", Unit(np.dtype("uint8"), (12,)))
    for places in ([3, 4, 5, 0, 63, 62, 3], [], [7], [9, 9, 9, 2, 9]):
        rows = np.array(places, np.int64)
        assert np.array_equal(units._read(rows), units.take(rows))
    assert not units._read(np.array([64, 100])).any()
    units.close()
