"""Verbs that need no torch do not load it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(str(path) for path in (ROOT / "configs").glob("*.yaml"))
PROBE = """
import sys
from finetune.cli import main
sys.argv = ["finetune", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["validate", *SHIPPED], ["schema"]],
    ids=["help", "help of a verb", "validate", "schema"],
)
def test_it_starts_without_torch_and_other_heavy_libraries(arguments):
    command = [sys.executable, "-c", PROBE, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    loaded = ended.stderr.splitlines()[-1]
    assert "'finetune'" in loaded
    for heavy in ("torch", "transformers", "numpy", "datasets"):
        assert f"'{heavy}'" not in loaded


def test_a_config_that_is_wrong_does_not_wait_for_torch(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: -1\n")
    command = [sys.executable, "-c", PROBE, "train", "x.yaml"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert "'torch'" not in ended.stderr.splitlines()[-1]


def test_the_module_runs_as_the_command_does():
    command = [sys.executable, "-m", "finetune", "validate", *SHIPPED]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0
    assert ended.stdout.count(": valid\n") == len(SHIPPED)
