"""A kill at any point of a save or of pruning loses no whole checkpoint, and the run ends the same.

`kill_in_save.py` does the killing, in processes of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "stride", "at_least"),
    [
        ("plain", 1, 80),
        ("background", 1, 80),
        ("damaged", 3, 25),
        ("again", 1, 30),
    ],
    ids=[
        "a run goes on and prunes",
        "it writes in the background",
        "it replaces a damaged checkpoint",
        "it replaces a whole one",
    ],
)
def test_a_kill_at_any_call_leaves_whole_checkpoints_and_a_run_that_ends_the_same(
    tmp_path, scenario, stride, at_least
):
    command = [sys.executable, HERE / "kill_in_save.py", tmp_path, scenario, str(stride)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= at_least


@pytest.mark.slow
def test_a_kill_at_some_calls_does_so_too(tmp_path):
    """Every ninth call of one save: quick enough for every day."""
    command = [sys.executable, HERE / "kill_in_save.py", tmp_path, "again", "9"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 3
