"""A disk that is full ends a run with one line, and takes nothing away that was there.

`RLIMIT_FSIZE` lets the system refuse writes beyond a size; a small tmpfs is full for good.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from finetune.errors import CheckpointError, FinetuneError
from finetune.runs.doctor import examine
from finetune.runs.kept import Checkpoints
from finetune.store.directory import cache_root, entries

HERE = Path(__file__).parent
WIDE = {
    "layers": [
        {"name": "body", "type": "Linear", "out_features": 256},
        {"name": "act", "type": "Tanh"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
PHASES = [
    {"name": "head", "train": ["head"], "until": {"steps": 10}},
    {"name": "all", "freeze": []},
]


@pytest.fixture
def command(runs, tmp_path):
    """Run `finetune train` in a process of its own, with or without a limit on its files."""

    def run(limit, folder, **changes):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(runs.RUN | changes, sort_keys=False))
        script = [HERE / "full_disk.py", str(limit)] if limit else ["-m", "finetune"]
        whole = [sys.executable, *script, "train", config, "--run", tmp_path / folder]
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parents[1]),
            "OMP_NUM_THREADS": "1",
            "FINETUNE_CACHE": str(tmp_path / f"cache-{folder}"),
        }
        return subprocess.run(whole, check=False, capture_output=True, text=True, env=environment)

    return run


def last_weights(folder):
    return max((folder / "checkpoints").iterdir()) / "weights.safetensors"


def faults(text):
    """Return the lines that tell of an error, and make sure that no traceback is among them.

    What is only for looking could not be written either: a remark, not what ended the run.
    """
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if not line.startswith(FOR_LOOKING)]
    return [line for line in lines if "File too large" in line or "cannot " in line]


FOR_LOOKING = (
    "report.html was not written",
    "tensorboard failed, and the run goes on without it",
    "no more pictures of the validation samples",
)
"""How the lines begin that tell of something that no run needs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "log_every", "left", "says"),
    [
        (100_000, 100, 10, r"checkpoints/step-00000015: cannot save: .*File too large"),
        (1_300, 1, None, r"cannot write.*: File too large"),
        (9_000, 1, None, r"metrics\.jsonl: cannot write: File too large"),
    ],
    ids=["saving", "the first files", "logging"],
)
def test_files_that_cannot_grow_end_the_run_with_one_line_and_it_goes_on_later(
    runs, command, tmp_path, limit, log_every, left, says
):
    """AdamW's state grows in the second phase, so the save of step 15 is the first too large."""
    changes = {
        "model": WIDE if left else runs.RUN["model"],
        "data": runs.RUN["data"]
        | {"source": {"type": "random", "samples": 40, "features": 64, "targets": 3}},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "freeze": {"phases": PHASES} if left else ["body"],
        "train": runs.TRAIN
        | {
            "steps": 40,
            "log_every": log_every,
            "evaluate_every": {"steps": 40},
            "checkpoint": {"every": {"steps": 5}, "keep_last": 99},
        },
    }
    whole = command(None, "whole", **changes)
    assert whole.returncode == 0, whole.stderr
    full = command(limit, "run", **changes)
    assert full.returncode == 2, full.stderr
    (line,) = faults(full.stderr)
    assert re.search(says, line), line
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=99)
    assert all(checkpoints.fault(path) is None for path in checkpoints.all())
    assert checkpoints.orphans() == []
    if left is not None:
        assert checkpoints.newest_valid()[0].name == f"step-{left:08d}"
    assert command(None, "run", **changes).returncode == 0
    assert (
        last_weights(tmp_path / "run").read_bytes() == last_weights(tmp_path / "whole").read_bytes()
    )
    assert examine(tmp_path / "run").is_sound


@pytest.mark.slow
def test_what_is_only_for_looking_ends_no_run(runs, command, tmp_path):
    """Event files, kept pictures and the page are the only files beyond the limit."""
    changes = {
        "train": runs.TRAIN | {"steps": 20, "log_every": 20},
        "data": runs.RUN["data"] | {"split": {"validation": 0.25}},
    }
    assert command(None, "whole", **changes).returncode == 0
    done = command(11_000, "run", **changes)
    assert done.returncode == 0, done.stderr
    assert faults(done.stderr) == []
    for begins in FOR_LOOKING:
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(begins)]
        assert "File too large" in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
    assert (
        last_weights(tmp_path / "run").read_bytes() == last_weights(tmp_path / "whole").read_bytes()
    )


DEEP = {
    "layers": [
        *(
            {"name": f"body{n}", "type": "Linear", "in_features": 512, "out_features": 512}
            for n in range(6)
        ),
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
STORING = {
    "model": DEEP,
    "data": {"source": {"type": "random", "samples": 400, "features": 512, "targets": 3}},
    "freeze": [f"body{n}" for n in range(6)],
    "train": {"epochs": 6, "batch_size": 40, "log_every": 1},
    "cache": "auto",
}


@pytest.mark.slow
def test_a_store_that_cannot_grow_lets_the_run_go_on_without_it(command, tmp_path):
    """400 rows of 2 KiB would make it 800 KiB."""
    stored = command(None, "stored", **STORING)
    assert "runs once per sample" in stored.stderr
    full = command(300_000, "run", **STORING)
    assert full.returncode == 0, full.stderr
    assert "Traceback" not in full.stderr
    (line,) = [line for line in full.stderr.splitlines() if "too large" in line.lower()]
    assert "activation cache: not stored" in line
    assert (
        last_weights(tmp_path / "run").read_bytes()
        == last_weights(tmp_path / "stored").read_bytes()
    )


class SmallDisk:
    """A file system of 4 MiB, and a file that takes what it has left."""

    def __init__(self, place):
        self.place = place

    def fill(self):
        with (self.place / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self):
        (self.place / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a tmpfs."""
    place = tmp_path / "mounted"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield SmallDisk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
def test_a_disk_that_fills_up_ends_the_run_and_keeps_all_that_was_saved(
    runs, unbroken, small_disk, background
):
    listener = runs.Listener()
    settings = runs.saving(background=background)
    folder = small_disk.place / "run"
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=9)

    def fill():
        # A save in the background may end after the next step: the disk is full once it is whole.
        until = time.monotonic() + 60
        while len(checkpoints.all()) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        small_disk.fill()

    listener.at[4] = fill
    trainer = runs.build(folder, listener, train=settings)
    with pytest.raises(FinetuneError) as caught:
        trainer.fit()
    assert caught.value.exit_code == 2
    assert "No space left on device" in str(caught.value)
    assert str(small_disk.place) in str(caught.value)
    assert [path.name[-1] for path in checkpoints.all()] == ["1", "2", "3"]
    assert checkpoints.start() == (checkpoints.path_of(3), [])
    # on the full disk, nothing of what is there is damaged by a second try
    config = (folder / "config.yaml").read_bytes()
    with pytest.raises(FinetuneError, match=r"left"):
        runs.build(folder, train=settings).fit()
    assert (folder / "config.yaml").read_bytes() == config
    small_disk.empty()
    again = runs.build(folder, train=settings)
    assert again.progress.step == 3
    again.fit()
    runs.assert_same_end(runs.end_of(again), unbroken[1])


@pytest.mark.slow
def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_first_step(runs, small_disk):
    model = {"layers": [{"name": "body", "type": "Linear", "out_features": 600_000}]}
    listener = runs.Listener()
    data = {"source": {"type": "random", "samples": 40, "features": 1, "targets": 600_000}}
    trainer = runs.build(small_disk.place / "run", listener, model=model, data=data, freeze=[])
    with pytest.raises(CheckpointError) as caught:
        trainer.fit()
    assert trainer.progress.step == 0
    assert "a checkpoint takes about 9.2 MiB, the disk has 4.0 MiB left" in str(caught.value)
    assert not trainer.folder.metrics.exists()


def test_a_store_on_a_disk_that_fills_up_keeps_its_rows_and_the_run_goes_on(
    runs, small_disk, tmp_path, monkeypatch, always
):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    stored = runs.build(tmp_path / "stored", **STORING)
    stored.fit()
    assert stored.cache.statistics.answered
    monkeypatch.setenv("FINETUNE_CACHE", str(small_disk.place))
    listener = runs.Listener()
    listener.at[5] = small_disk.fill
    trainer = runs.build(tmp_path / "run", listener, **STORING)
    trainer.fit()
    (line,) = [line for line in listener.lines if "nothing more is stored" in line]
    assert "No space left on device" in line
    assert 0 < trainer.cache.statistics.recorded < 400
    assert len(entries(cache_root())) == 1
    runs.assert_same_end(runs.end_of(trainer), runs.end_of(stored))
