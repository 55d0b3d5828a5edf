"""Rows are not kept in the memory of a run that may take less than half of theirs."""

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


def test_a_run_has_no_need_of_memory_for_half_of_its_store(tmp_path):
    bounded = run(tmp_path, "bounded", "auto")
    assert bounded.returncode == 0, bounded.stderr[-2000:]
    whole = run(tmp_path, "whole", "off")
    ends = [json.loads(ended.stdout.splitlines()[-1]) for ended in (bounded, whole)]
    assert ends[0]["answered"] == 2 * 1797
    assert ends[1]["answered"] == 0
    assert ends[0]["weights"] == ends[1]["weights"]
