"""Checkpoints: whole or passed over, exact when taken up, small because of the delta."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from finetune.errors import CheckpointError
from finetune.runs.lock import locked

FREEZE = {"phases": [{"name": "all", "freeze": ["body", "norm"]}]}
SAVE_ALL = {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def names_in(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def cut_to(trainer, step):
    """Leave the run as if it had been killed right after the checkpoint of `step`."""
    for path in trainer.saver.checkpoints.all():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    (trainer.folder.path / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [None, FREEZE], ids=["all trained", "partly frozen"])
@pytest.mark.parametrize("stop", [1, 9, 10, 11, 12, 13, 19])
def test_a_resumed_run_ends_bit_identical_to_an_unbroken_one(make_trainer, stop, freeze):
    """An epoch has 12 steps, evaluation comes at 10: stops stand before, on and after both."""
    unbroken = make_trainer("unbroken", freeze=freeze, train=SAVE_ALL)
    unbroken.fit()
    lines = unbroken.folder.metrics.read_text().splitlines()
    expected, state = weights(unbroken), unbroken.optimizer.state_dict()["state"]
    cut_to(unbroken, stop)
    resumed = make_trainer("unbroken", freeze=freeze, train=SAVE_ALL)
    assert resumed.progress.step == stop
    resumed.fit()
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    for place, entries in resumed.optimizer.state_dict()["state"].items():
        for entry, value in entries.items():
            assert torch.equal(value, state[place][entry]), (place, entry)
    assert [without_times(line) for line in lines] == [
        without_times(line) for line in resumed.folder.metrics.read_text().splitlines()
    ]


def without_times(line):
    entry = json.loads(line)
    return {k: v for k, v in entry.items() if not k.startswith(("time/", "memory/"))}


def test_the_delta_holds_what_was_trained_and_what_moved(make_trainer):
    frozen = make_trainer("frozen", freeze=FREEZE)
    frozen.fit()
    assert names_in(frozen.saver.checkpoints.all()[-1] / "weights.safetensors") == {
        "head.weight", "head.bias",
    }  # fmt: skip
    trained = make_trainer("trained")
    trained.fit()
    assert names_in(trained.saver.checkpoints.all()[-1] / "weights.safetensors") == set(
        trained.model.state_dict()
    )


def test_a_finished_run_is_left_alone(make_trainer):
    make_trainer().fit()
    again = make_trainer()
    before = {p: p.stat().st_mtime_ns for p in again.folder.path.rglob("*")}
    again.fit()
    assert {p: p.stat().st_mtime_ns for p in again.folder.path.rglob("*")} == before


def test_fresh_begins_anew_and_leaves_other_files_alone(make_trainer):
    trainer = make_trainer()
    trainer.fit()
    (trainer.folder.path / "notes.txt").write_text("mine")
    again = make_trainer(fresh=True, seed=1)
    assert again.progress.step == 0
    again.fit()
    assert (trainer.folder.path / "notes.txt").read_text() == "mine"
    assert json.loads(trainer.folder.metrics.read_text().splitlines()[-1])["step"] == 20


def test_more_steps_go_on_where_the_run_ended(make_trainer):
    make_trainer().fit()
    longer = make_trainer(train={"steps": 25})
    assert longer.progress.step == 20
    assert longer.fit().step == 25


def test_another_config_in_the_folder_is_refused_key_by_key(make_trainer):
    make_trainer().fit()
    with pytest.raises(CheckpointError) as caught:
        make_trainer(optimizer={"lr": 0.5}, seed=3)
    assert "optimizer.lr: 0.01 there, 0.5 now" in str(caught.value)
    assert "seed: 0 there, 3 now" in str(caught.value)


def test_a_folder_with_other_things_is_refused(make_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds no run"):
        make_trainer()


def test_a_run_killed_before_its_config_was_written_begins(make_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".run.lock", ".config.yaml.tmp"):
        (tmp_path / "run" / name).write_text("cut sh")
    assert make_trainer().fit().step == 20


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_summary_is_written_anew(make_trainer, text):
    trainer = make_trainer()
    trainer.fit()
    summary = trainer.folder.path / "summary.json"
    status, metrics = json.loads(summary.read_text())["status"], trainer.progress.metrics
    summary.write_text(text)
    assert make_trainer().fit().metrics == metrics
    assert json.loads(summary.read_text())["status"] == status == "done"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", [flip, truncate, lambda p: p.unlink()],
                         ids=["bit flipped", "truncated", "missing"])  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_trainer, damage, name):
    trainer = make_trainer(train=SAVE_ALL)
    trainer.fit()
    damage(trainer.saver.checkpoints.path_of(20) / name)
    assert make_trainer(train=SAVE_ALL).progress.step == 19


def test_a_checkpoint_without_manifest_is_passed_over(make_trainer):
    trainer = make_trainer(train=SAVE_ALL)
    trainer.fit()
    (trainer.saver.checkpoints.path_of(20) / "MANIFEST.json").unlink()
    assert make_trainer(train=SAVE_ALL).progress.step == 19


def test_a_base_that_is_not_the_runs_own_is_refused(make_trainer):
    trainer = make_trainer(freeze=FREEZE)
    trainer.fit()
    other = make_trainer("other", freeze=FREEZE, seed=1)
    shutil.copytree(trainer.saver.checkpoints.folder, other.saver.checkpoints.folder)
    other.folder.begin()
    with pytest.raises(CheckpointError, match="not those that this run began with"):
        make_trainer("other", freeze=FREEZE, seed=1)


def test_nothing_is_written_before_fit(make_trainer, tmp_path):
    make_trainer()
    assert list(tmp_path.iterdir()) == []


def test_older_checkpoints_are_pruned_and_orphans_swept(make_trainer):
    trainer = make_trainer(train={"checkpoint": {"every": {"steps": 4}, "keep_last": 2}})
    orphan = trainer.saver.checkpoints.folder / ".tmp-step-00000003-1"
    orphan.mkdir(parents=True)
    with locked(trainer.folder.path):  # a run was here before
        pass
    trainer.fit()
    assert [path.name for path in trainer.saver.checkpoints.all()] == [
        "step-00000016",
        "step-00000020",
    ]
    assert not orphan.exists()
