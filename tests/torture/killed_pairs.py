"""A run that is killed and one that never was, by `killed_run.py`: are both the same?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from finetune.tracking.json_lines import read_metrics

HERE = Path(__file__).parent


def killed(config, run, rounds, tmp_path, seed=7):
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, HERE / "killed_run.py", config, run, str(rounds), str(seed)],
        env=os.environ | {"PYTHONPATH": paths, "FINETUNE_CACHE": str(tmp_path / f"cache-{run}")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["status"] == 0, done.stderr
    return seen


def told(run):
    hidden = ("time/", "memory/")
    return [
        {key: value for key, value in line.items() if not key.startswith(hidden)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def summary(run):
    return json.loads((run / "summary.json").read_text())


def assert_same_run(cut, whole):
    """Compare checkpoints, figures and proof of two runs, bit by bit."""
    names = [path.name for path in sorted((whole / "checkpoints").iterdir())]
    assert [path.name for path in sorted((cut / "checkpoints").iterdir())] == names
    for name in names:
        for file in ("weights.safetensors", "optimizer.safetensors"):
            one, two = (load_file(run / "checkpoints" / name / file) for run in (whole, cut))
            assert one.keys() == two.keys()
            assert all(torch.equal(one[key], two[key]) for key in one), (name, file)
    assert told(cut) == told(whole)
    proofs = [(run / "freeze_proof.json").read_bytes() for run in (whole, cut)]
    assert proofs[0] == proofs[1]
    assert summary(cut)["metrics"] == summary(whole)["metrics"]
