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


HEAVY = {
    *("torch", "numpy", "transformers", "timm", "torchvision", "torchmetrics", "tensorboard"),
    *("scipy", "sklearn", "pandas", "pyarrow", "datasets", "matplotlib"),
}
SMALL = """
model: {layers: [{name: head, type: Linear, out_features: 1}]}
data:
  source: {type: random, samples: 40, features: 4, targets: 1}
  split: {test: 0.3}
task: {type: regression, metrics: [mae, r2]}
optimizer: {type: SGD, lr: 0.1}
train: {steps: 2, batch_size: 8}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that holds a small config and a run of it, and what `train` has loaded for it."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "c.yaml").write_text(SMALL)
    return folder, heavy_loaded(["train", "c.yaml", "--run", "run"], folder)


def heavy_loaded(arguments, folder):
    """Run a command in a process of its own; return the heavy libraries that it has loaded."""
    command = [sys.executable, "-c", PROBE, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return {name for name in HEAVY if f"'{name}'" in ended.stderr.splitlines()[-1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["cache", "ls"], {"numpy"}),
        (["doctor", "run"], {"numpy"}),
        (["plan", "c.yaml"], {"numpy", "torch"}),
        (["eval", "run"], {"numpy", "torch"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_verb_loads_the_heavy_libraries_that_it_needs_and_no_others(trained, arguments, needed):
    assert heavy_loaded(arguments, trained[0]) == needed


def test_training_loads_its_writer_and_no_library_that_the_config_does_not_name(trained):
    assert trained[1] == {"numpy", "torch", "tensorboard"}


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
