"""Every command ends with the code that README names, and with one line where it fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from finetune.cli import app, main
from finetune.config.loader import load_config
from finetune.train.wire import build_trainer

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no such device here")
NO_ROOM = "standard output: cannot be written: No space left on device\n"
SLOW = [
    pytest.param(verb, marks=pytest.mark.slow) for verb in ("plan c.yaml", "eval run", "doctor run")
]
VERBS = sorted(typer.main.get_command(app).commands)

CONFIG = """
model:
  layers:
    - {name: body, type: Linear, out_features: 4}
    - {name: head, type: Linear, out_features: classes}
data:
  source: {type: csv, path: points.csv}
  split: {validation: 0.2, test: 0.2, stratify: true}
  inputs: [u, v]
  target: label
  transforms: [{type: stack}]
task: {type: classification}
optimizer: {type: SGD, lr: 0.3}
train: {epochs: 2, batch_size: 8}
cache: off
"""
HANGING = '''
"""A transform that never ends, and tells that it has begun."""
import time
from pathlib import Path


def transform(started):
    def hang(sample):
        Path(started).touch()
        time.sleep(600)
        return sample

    return hang
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table, a config, and a run."""
    folder = tmp_path_factory.mktemp("endings")
    rows = "".join(f"{n % 7},{n % 3},{'ab'[n % 2]}\n" for n in range(60))
    (folder / "points.csv").write_text(f"u,v,label\n{rows}")
    (folder / "many.csv").write_text("u,v\n" + "1,2\n" * 9000)
    (folder / "c.yaml").write_text(CONFIG)
    build_trainer(load_config(folder / "c.yaml"), folder / "run").fit(quiet=True)
    return folder


def shell(folder, line):
    """Run a line of bash in which `finetune` is the command; return code and standard error."""
    line = line.replace("finetune", f"{sys.executable} -m finetune")
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, check=False, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", ["predict run many.csv", *SLOW[:2]], ids=lambda verb: verb.split()[0]
)
def test_a_reader_that_leaves_after_a_line_ends_it_quietly_with_141(place, verb):
    head = "head -1" if verb.startswith("predict") else "true"
    code, err = shell(place, f"finetune {verb} | {head} >/dev/null; exit ${{PIPESTATUS[0]}}")
    assert (code, err) == (141, "")


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("verb", ["predict run many.csv", *SLOW], ids=lambda verb: verb.split()[0])
def test_results_without_room_are_one_line_and_2(place, verb):
    assert shell(place, f"finetune {verb} > /dev/full") == (2, NO_ROOM)


@pytest.mark.slow
@needs_full
def test_a_full_file_of_predictions_is_one_line_and_2(place):
    code, err = shell(place, "finetune predict run points.csv --without-columns --out /dev/full")
    assert (code, err) == (2, "/dev/full: cannot be written: No space left on device\n")


def test_a_port_in_use_is_one_line_and_2(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = shell(place, f"finetune tensorboard . --port {port}")
    assert code == 2
    first, hint = err.splitlines()
    assert first == f"--port: cannot listen on port {port}: address already in use"
    assert "--port 0" in hint


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_of_every_verb_ends_with_0(monkeypatch, capsys, verb, flag):
    monkeypatch.setattr(sys, "argv", ["finetune", *filter(None, [verb]), flag])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert f"finetune {verb}".strip() in out


def test_the_version_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr() == (f"finetune {version('finetune')}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("has_begun", [False, True], ids=["first start", "later start"])
def test_a_signal_while_a_run_is_built_ends_with_130_or_where_it_can_go_on_with_75(
    place, tmp_path, number, has_begun
):
    (tmp_path / "hanging.py").write_text(HANGING)
    mark = tmp_path / "started"
    step = f"{{type: import, path: 'hanging:transform', args: {{started: {mark}}}}}"
    changed = CONFIG.replace("points.csv", f"{place}/points.csv").replace(
        "[{type: stack}]", f"[{{type: stack}}, {step}]"
    )
    (tmp_path / "c.yaml").write_text(changed)
    (tmp_path / "same.yaml").write_text(CONFIG.replace("points.csv", f"{place}/points.csv"))
    if has_begun:
        build_trainer(load_config(tmp_path / "same.yaml"), tmp_path / "run").fit(quiet=True)
        (tmp_path / "run" / "config.yaml").write_text(changed)
    command = [sys.executable, "-m", "finetune", "train", "c.yaml", "--run", "run"]
    process = subprocess.Popen(
        [*command, "--trust", "hanging"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    try:
        while not mark.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=180)
    finally:
        process.kill()
    said = f"interrupted by {number.name}"
    if has_begun:
        assert process.returncode == 75, err
        assert err.splitlines()[0] == f"{said} before the first step; nothing was written"
        assert err.splitlines()[1].strip().startswith("the same command goes on")
    else:
        assert (process.returncode, err) == (130, f"{said}\n")
        assert not (tmp_path / "run").exists()
