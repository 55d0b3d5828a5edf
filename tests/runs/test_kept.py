"""Which checkpoints stay, which go, and which one is taken up; without any network."""

import json
import math
import os
import shutil

import pytest

from finetune.config.train import CheckpointConfig
from finetune.errors import CheckpointError
from finetune.runs.background import Worker
from finetune.runs.checkpoint_folder import read_progress
from finetune.runs.disk_space import Room
from finetune.runs.kept import Checkpoints
from finetune.runs.manifest import MANIFEST, Manifest
from finetune.runs.progress import Progress
from finetune.runs.watch import Rule, Watch
from finetune.tasks.directions import Directions
from finetune.train.rules import Rules, judge


@pytest.fixture
def make(tmp_path):
    """Make the folder of checkpoints."""

    def make(keep_last=2, **more):
        return Checkpoints(tmp_path / "checkpoints", keep_last, **more)

    return make


def add(checkpoints, step, *, wanted=(), **progress):
    """Add a checkpoint of small files."""

    def fill(folder):
        for name in ("weights.safetensors", "optimizer.safetensors"):
            (folder / name).write_bytes(bytes(8) + str(step).encode())
        document = {"progress": Progress(step, **progress).to_json(), "optimizer": {}, "scaler": {}}
        (folder / "progress.json").write_text(json.dumps(document))
        manifest = Manifest.of(folder, step, 0, "base", frozenset())
        (folder / MANIFEST).write_text(manifest.to_json())

    return checkpoints.add(step, fill, wanted)


def steps(checkpoints):
    return [int(path.name[-8:]) for path in checkpoints.all()]


def damage(path):
    (path / "weights.safetensors").write_bytes(b"damaged")


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_last_ones_stay_and_those_that_are_wanted(make, keep_last):
    checkpoints = make(keep_last)
    for step in range(1, 7):
        add(checkpoints, step, wanted=(2,))
    assert steps(checkpoints) == sorted({2, *range(7 - keep_last, 7)})
    assert names(checkpoints) == [f"step-{step:08d}" for step in steps(checkpoints)]


@pytest.mark.parametrize("keep_last", [1, 2, 3])
@pytest.mark.parametrize("damaged", [(5,), (4, 5), (3, 4, 5), (2, 4)], ids=str)
def test_a_damaged_one_never_pushes_out_a_whole_one(make, keep_last, damaged):
    first = make(9)
    for step in range(1, 6):
        add(first, step)
    for step in damaged:
        damage(first.path_of(step))
    whole = [step for step in range(1, 6) if step not in damaged]
    checkpoints = make(keep_last)
    add(checkpoints, 6)
    left = [
        step for step in steps(checkpoints) if checkpoints.fault(checkpoints.path_of(step)) is None
    ]
    assert left == [*whole, 6][-keep_last:]


def test_one_damaged_between_two_saves_of_a_run_is_seen(make):
    checkpoints = make(2)
    for step in (1, 2):
        add(checkpoints, step)
    damage(checkpoints.path_of(2))
    add(checkpoints, 3)
    assert steps(checkpoints) == [1, 2, 3]
    add(checkpoints, 4)
    assert steps(checkpoints) == [3, 4]


def test_what_is_not_ours_is_never_removed(make):
    checkpoints = make(1)
    add(checkpoints, 1)
    for name in ("step-7", "step-00000000", "step-final", "step-0000002x", "old", ".tmp-notes"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "thesis.tex").write_text("years of work")
    (checkpoints.folder / "step-00000009").write_text("a file")
    before = names(checkpoints)
    for step in (10, 9_999_999, 10_000_000, 123_456_789):
        add(checkpoints, step)
    checkpoints.sweep()
    assert set(before) - set(names(checkpoints)) == {"step-00000001"}
    assert checkpoints.newest_valid()[0] == checkpoints.path_of(123_456_789)


def test_checkpoints_go_by_the_number_of_their_step(make):
    """As text, step 100000000 comes before step 99999999."""
    checkpoints = make(2)
    for step in (99_999_998, 99_999_999, 100_000_000):
        add(checkpoints, step)
    assert [path.name for path in checkpoints.all()] == ["step-99999999", "step-100000000"]
    assert checkpoints.newest_valid()[0].name == "step-100000000"


def test_newer_ones_than_the_step_saved_are_left_alone(make):
    checkpoints = make(1)
    for step in (5, 6):
        add(make(9), step)
    add(checkpoints, 3)
    assert steps(checkpoints) == [3, 5, 6]


def test_a_link_is_neither_followed_nor_removed(make, tmp_path):
    checkpoints = make(1)
    add(checkpoints, 1)
    shutil.move(checkpoints.path_of(1), tmp_path / "elsewhere")
    checkpoints.path_of(1).symlink_to(tmp_path / "elsewhere")
    for step in (2, 3):
        add(checkpoints, step)
    assert (tmp_path / "elsewhere" / MANIFEST).is_file()
    assert checkpoints.fault(checkpoints.path_of(1)) == "is a link, not a folder"


def test_orphans_are_swept_and_one_moved_aside_gets_its_name_back(make):
    checkpoints = make(9)
    for step in (1, 2, 3):
        add(checkpoints, step)
    folder = checkpoints.folder
    for name in (".tmp-step-00000004", ".tmp-step-00000003-17", ".gone-step-00000001"):
        shutil.copytree(folder / "step-00000001", folder / name)
    shutil.copytree(folder / "step-00000002", folder / ".old-step-00000002")
    (folder / "step-00000003").rename(folder / ".old-step-00000003")
    # who only reads sees the one moved aside as well
    assert steps(checkpoints) == [1, 2, 3]
    assert checkpoints.newest_valid()[0] == folder / ".old-step-00000003"
    assert len(checkpoints.orphans()) == 4
    checkpoints.sweep()
    assert names(checkpoints) == [f"step-{step:08d}" for step in (1, 2, 3)]
    assert checkpoints.newest_valid() == (folder / "step-00000003", [])


def test_a_save_that_fails_leaves_the_one_it_would_replace(make):
    checkpoints = make()
    add(checkpoints, 1)
    before = (checkpoints.path_of(1) / "weights.safetensors").read_bytes()

    def fill(folder):
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="cannot save: No space left on device") as caught:
        checkpoints.add(1, fill)
    assert "goes on from the newest checkpoint" in str(caught.value)
    assert names(checkpoints) == ["step-00000001"]
    assert (checkpoints.path_of(1) / "weights.safetensors").read_bytes() == before


def test_a_rename_that_is_refused_leaves_the_one_it_would_replace(make, monkeypatch):
    checkpoints = make()
    add(checkpoints, 1)
    rename = os.rename

    def refusing(source, target, **more):
        if ".tmp-" in str(source):
            raise OSError(13, "Permission denied")
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(CheckpointError, match="Permission denied"):
        add(checkpoints, 1)
    assert checkpoints.fault(checkpoints.path_of(1)) is None
    assert names(checkpoints) == ["step-00000001"]


def test_a_checkpoint_is_judged_anew_once_a_file_of_it_was_written(make):
    checkpoints = make()
    path = add(checkpoints, 1)
    assert checkpoints.fault(path) is None
    damage(path)
    assert "has 7 bytes" in checkpoints.fault(path)


def test_a_progress_of_an_earlier_release_without_the_ranking_knows_its_best(make, tmp_path):
    checkpoints = make()
    path = add(checkpoints, 4, best=Watch(0.5, 2))
    document = json.loads((path / "progress.json").read_text())
    del document["progress"]["ranking"]
    (path / "progress.json").write_text(json.dumps(document))
    assert read_progress(path).ranking == [(2, 0.5)]


DIRECTIONS = Directions({"validation/loss": "lower", "validation/accuracy": "higher"})


def evaluated(values, keep_best, metric="validation/loss"):
    """Return the progress of a run of these evaluations, and the steps that were to be saved."""
    progress, rule = Progress(), Rule("best", metric, falls=DIRECTIONS.falls(metric))
    rules = Rules(best=rule, stopping=None, plateau=None, phase_best=None)
    saved = []
    for value in values:
        progress.step += 1
        progress.metrics = {metric: value}
        if judge(rules, progress, num_kept=keep_best or 1):
            saved.append(progress.step)
    return progress, saved


@pytest.mark.parametrize(
    ("values", "keep_best", "ranked", "saved"),
    [
        ([3, 2, 1], None, [3], [1, 2, 3]),
        ([1, 2, 3], None, [1], [1]),
        ([1, 1, 1], 1, [1], [1]),
        ([1, 1, 1], 2, [1, 2], [1, 2]),
        ([3, 1, 2, 1, 0], 2, [5, 2], [1, 2, 3, 4, 5]),
        ([math.nan, 2, math.nan, 1], 2, [4, 2], [2, 4]),
        ([math.nan], 2, [], []),
        ([math.inf, 1], 2, [2, 1], [1, 2]),
        ([1, 2, 3], 5, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_the_best_are_kept_the_earlier_of_two_that_are_equal_and_never_nan(
    values, keep_best, ranked, saved
):
    progress, to_save = evaluated(values, keep_best)
    assert [step for step, _ in progress.ranking] == ranked
    assert to_save == saved
    assert progress.best.step == (ranked[0] if ranked else None)
    assert progress.wanted_steps() == set(ranked)


def test_a_metric_that_should_rise_is_ranked_the_other_way(make):
    progress, _ = evaluated([0.1, 0.9, 0.5], 2, "validation/accuracy")
    assert progress.ranking == [(2, 0.9), (3, 0.5)]


def test_keeping_best_ones_needs_a_metric():
    with pytest.raises(ValueError, match=r"keep_best \(2\) needs a metric in 'best'"):
        CheckpointConfig(keep_best=2, best=None)


@pytest.fixture
def free(monkeypatch):
    """Set what the disk has left."""

    def set_free(num_bytes):
        usage = shutil.disk_usage("/")._replace(free=num_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


def test_a_disk_that_cannot_hold_one_checkpoint_is_an_error_before_the_run(make, free):
    free(5 << 20)
    told = []
    with (
        pytest.raises(CheckpointError) as caught,
        make(room=Room(6 << 20, 2)).in_use(told.append),
    ):
        raise AssertionError("the run has begun")
    assert "a checkpoint takes about 6.0 MiB, the disk has 5.0 MiB left" in str(caught.value)
    assert "make room, or choose another --run" in str(caught.value)


@pytest.mark.parametrize(("there", "warned"), [(0, "3 more"), (1, None), (5, None)])
def test_a_disk_that_cannot_hold_all_that_is_kept_is_told_once(make, free, there, warned):
    """Two are kept and a third is written before one goes; those that are there count."""
    checkpoints = make(9, room=Room(5 << 20, 2))
    for step in range(there):
        add(checkpoints, step + 1)
    free(14 << 20)
    told = []
    with checkpoints.in_use(told.append):
        pass
    assert len(told) == (warned is not None)
    if warned:
        assert "3 more checkpoints take about 15.0 MiB, the disk has 14.0 MiB left" in told[0]


def test_a_fault_in_the_background_reaches_the_next_save_and_is_told_once(make):
    checkpoints = make(worker=Worker(in_thread=True))

    def fill(folder):
        raise OSError(28, "No space left on device")

    checkpoints.add(1, fill)
    with pytest.raises(CheckpointError, match="step-00000001: cannot save: No space left"):
        add(checkpoints, 2)
    add(checkpoints, 3)
    assert checkpoints.whole(3).name == "step-00000003"


def test_a_fault_in_the_background_reaches_the_end_of_the_run(make):
    def fill(folder):
        raise OSError(28, "No space left on device")

    checkpoints = make(worker=Worker(in_thread=True))
    with pytest.raises(CheckpointError, match="No space left"), checkpoints.in_use(print):
        checkpoints.add(1, fill)


def test_a_fault_in_the_background_does_not_hide_what_has_ended_the_run(make):
    def fill(folder):
        raise OSError(28, "No space left on device")

    told = []
    checkpoints = make(worker=Worker(in_thread=True))

    def run():
        with checkpoints.in_use(told.append):
            checkpoints.add(1, fill)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "No space left on device" in told[0]
