"""A store ten times as large as its budget of memory is not kept in memory, and changes no bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_DATA and /proc"),
]


def run(folder, name, prefix):
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = os.environ | {"PYTHONPATH": paths, "FINETUNE_CACHE": str(folder / name / "cache")}
    command = [sys.executable, str(HERE / "bounded_run.py"), str(folder / name), json.dumps(prefix)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_a_run_with_a_store_ten_times_its_budget_has_no_need_of_memory_for_half_of_it(tmp_path):
    bounded = run(tmp_path, "bounded", {"memory_gb": 0.022})
    assert bounded.returncode == 0, bounded.stderr[-2000:]
    whole = run(tmp_path, "whole", "off")
    ends = [json.loads(ended.stdout.splitlines()[-1]) for ended in (bounded, whole)]
    assert ends[0]["answered"] == 2 * 1797
    assert ends[1]["answered"] == 0
    assert ends[0]["weights"] == ends[1]["weights"]


def test_where_memory_is_full_long_before_its_budget_rows_are_read_from_disk(tmp_path):
    greedy = run(tmp_path, "greedy", {"memory_gb": 2.0})
    assert greedy.returncode == 0, greedy.stderr[-2000:]
    whole = run(tmp_path, "whole", "off")
    ends = [json.loads(ended.stdout.splitlines()[-1]) for ended in (greedy, whole)]
    assert sum("memory is full, rows are read from disk" in line for line in ends[0]["said"]) == 1
    assert ends[0]["answered"] == 2 * 1797
    assert ends[0]["weights"] == ends[1]["weights"]
