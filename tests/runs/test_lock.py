"""One process at a time in a run folder; the lock of a dead one is nobody's."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.runs.lock import LOCK, Holder, holder_of, locked, refuse_if_held

ROOT = Path(__file__).parents[2]
HOLDING = """
import os, sys, time
from pathlib import Path
from finetune.runs.lock import locked
folder, children = Path(sys.argv[1]), int(sys.argv[2])
with locked(folder):
    for _ in range(children):
        if os.fork() == 0:
            time.sleep(1.5)
            os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path, started):
    """Start a process that holds a folder; it is killed when the test is over."""

    def start(children=0):
        command = [sys.executable, "-c", HOLDING, str(tmp_path), str(children)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    return start


def test_the_second_process_is_told_who_holds_the_folder(holding, tmp_path):
    process = holding()
    with pytest.raises(CheckpointError) as caught, locked(tmp_path):
        pass
    said = rf"{tmp_path}: in use by process {process.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d"
    assert re.match(said, str(caught.value))
    assert "wait for it, end it, or choose another --run" in str(caught.value)
    with pytest.raises(CheckpointError, match=f"process {process.pid} "):
        refuse_if_held(tmp_path)
    assert holder_of(tmp_path).pid == process.pid


@pytest.mark.parametrize("children", [0, 2], ids=["alone", "with processes of its loader"])
def test_the_lock_of_a_killed_process_is_taken_over(holding, tmp_path, children):
    process = holding(children)
    process.kill()
    process.wait()
    refuse_if_held(tmp_path)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert holder_of(tmp_path).pid == os.getpid()
    assert holder_of(tmp_path) is None


def test_a_lock_is_free_again_when_its_block_is_left_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    with locked(tmp_path):
        assert holder_of(tmp_path).pid == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_lock_that_says_nothing_readable_still_holds(holding, tmp_path, text):
    holding()
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(CheckpointError, match="in use by process"), locked(tmp_path):
        pass


def test_a_process_of_another_machine_is_never_taken_for_dead():
    assert Holder(2**22 + 1, "elsewhere", "").is_dead() is False


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / LOCK).symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(OSError, match="is a link"), locked(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow
def test_a_folder_in_use_is_refused_before_the_run_is_built_and_as_it_begins(
    make_trainer, tmp_path
):
    trainer = make_trainer()
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        with pytest.raises(CheckpointError, match="in use by process"):
            make_trainer()
        with pytest.raises(CheckpointError, match="in use by process"):
            make_trainer(fresh=True)
        with pytest.raises(CheckpointError, match="in use by process"):
            trainer.fit()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert trainer.fit().step == 20


@pytest.mark.slow
def test_beginning_anew_removes_nothing_of_a_run_that_is_at_work(make_trainer, tmp_path):
    make_trainer().fit()
    before = sorted(tmp_path.rglob("*"))
    fresh = make_trainer(fresh=True)
    with locked(tmp_path / "run"), pytest.raises(CheckpointError, match="in use by process"):
        fresh.fit()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_reading_verbs_need_no_lock(make_trainer, tmp_path):
    from finetune.predict import load_predictor
    from finetune.runs.doctor import examine

    make_trainer().fit()
    with locked(tmp_path / "run"):
        load_predictor(tmp_path / "run")
        assert examine(tmp_path / "run").is_sound


@pytest.fixture
def read_only(tmp_path):
    """A folder of a file system that cannot be written."""
    place = tmp_path / "mounted"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_run_folder_that_cannot_be_written_is_told_in_one_line(make_config, read_only):
    from finetune.train.wire import build_trainer

    trainer = build_trainer(make_config(), read_only / "run")
    with pytest.raises(CheckpointError) as caught:
        trainer.fit()
    assert (
        str(caught.value) == f"{read_only}/run: cannot write the run folder: Read-only file system"
    )


@pytest.mark.slow
def test_a_finished_run_is_read_from_where_nothing_can_be_written(make_trainer, tmp_path):
    """Also by the verb that would go on: there is nothing left to do."""
    from finetune.predict import load_predictor

    trainer = make_trainer()
    trainer.fit()
    for path in [*(tmp_path / "run").rglob("*"), tmp_path / "run"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        load_predictor(tmp_path / "run")
        assert make_trainer().fit().step == 20
    finally:
        for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
