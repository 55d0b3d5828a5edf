"""Folders of others: what a run or the cache has not made is not followed, removed or replaced."""

import json
import os
import shutil

import pytest

from finetune import disk
from finetune.errors import CheckpointError, FinetuneError
from finetune.runs.folder import RunFolder
from finetune.runs.lock import LOCK
from finetune.store.directory import entries, remove_store
from finetune.store.layout import RowSpec, StoreError
from finetune.store.store import Store

WORK = "work of a year\n"
MORE = ("-o", "train.epochs=3")


@pytest.fixture
def outside(attack):
    """A folder of somebody's work, which nothing may change."""
    folder = attack.folder / "outside"
    folder.mkdir()
    (folder / "thesis.tex").write_text(WORK)
    return folder


# temporary names


@pytest.mark.parametrize(
    "name", [f".{n}.tmp" for n in ("config.yaml", "plan.json", "data.json", "summary.json")]
)
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_a_link_by_the_name_of_a_temporary_file_is_not_written_through(
    attack, planted, outside, name, kind
):
    target = outside / "thesis.tex"
    if kind == "hard link":
        os.link(target, planted / name)
    else:
        (planted / name).symlink_to(target if kind == "link" else outside / "new.sh")
    before = attack.tree(outside)
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0
    assert attack.tree(outside) == before
    assert (planted / "config.yaml").read_text().startswith("name: honest")


def test_a_pipe_by_the_name_of_a_temporary_file_keeps_nobody_waiting(attack, planted):
    os.mkfifo(planted / ".config.yaml.tmp")
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0


def test_a_folder_by_the_name_of_a_temporary_file_stays(attack, planted):
    (planted / ".config.yaml.tmp").mkdir()
    (planted / ".config.yaml.tmp" / "thesis.tex").write_text(WORK)
    outcome = attack.harmless("train", "honest.yaml", *MORE)
    assert outcome.code == 2
    assert (planted / ".config.yaml.tmp" / "thesis.tex").read_text() == WORK


# names of a run


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "tensorboard/x"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "verb",
    [("train", "honest.yaml", *MORE), ("train", "honest.yaml", "--fresh"), ("eval",), ("doctor",)],
    ids=["train", "fresh", "eval", "doctor"],
)
def test_a_link_or_pipe_by_the_name_of_a_file_of_a_run_is_refused(
    attack, planted, outside, name, kind, verb
):
    (planted / name).unlink(missing_ok=True)
    if kind == "link":
        (planted / name).symlink_to(outside / "thesis.tex")
    else:
        os.mkfifo(planted / name)
    before = attack.tree(outside)
    verb = verb if verb[0] == "train" else (*verb, planted)
    line = attack.refused(*verb)
    assert line.endswith(f"{name}: {'is a link, which is not followed here'}") or (
        kind == "pipe" and line.endswith(f"{name}: is a pipe, not a file")
    )
    assert attack.tree(outside) == before


def test_a_hard_link_to_the_lock_of_a_run_is_not_written(attack, planted, outside):
    (planted / LOCK).unlink()
    os.link(outside / "thesis.tex", planted / LOCK)
    outcome = attack.harmless("train", "honest.yaml", *MORE)
    assert outcome.code == 2
    assert "bears another name elsewhere" in outcome.err
    assert (outside / "thesis.tex").read_text() == WORK


def test_curves_that_are_hard_links_elsewhere_are_not_appended_to(attack, planted, outside):
    other = outside / "metrics.jsonl"
    os.link(planted / "metrics.jsonl", other)
    before = other.read_bytes()
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0
    assert other.read_bytes() == before
    assert (planted / "metrics.jsonl").read_bytes() != before


@pytest.mark.slow
def test_checkpoints_behind_a_link_are_refused_and_the_key_for_it_works(attack, planted, outside):
    big = outside / "big"
    (planted / "checkpoints").rename(big)
    (planted / "checkpoints").symlink_to("../../outside/big")
    before = attack.tree(outside)
    for verb in (("eval", planted), ("doctor", planted), ("train", "honest.yaml", "--fresh")):
        assert "is a link, which is not followed here" in attack.refused(*verb)
    outcome = attack.harmless("train", "honest.yaml", *MORE)
    assert "train.checkpoint.path: '../../outside/big' places them there" in outcome.err
    assert attack.tree(outside) == before

    (planted / "checkpoints").unlink()
    key = ("-o", "train.checkpoint.path=../../outside/big")
    outcome = attack.harmless("train", "honest.yaml", *MORE, *key)
    assert outcome.code == 0
    assert "goes on with a changed config: train.checkpoint.path" in outcome.err
    assert (big / "step-00000009").is_dir()
    assert not (planted / "checkpoints").exists()
    assert attack.harmless("eval", planted).code == 0
    assert attack.harmless("doctor", planted).code == 0
    # the config of the run says where they are; one that says something else is told
    line = attack.refused("train", "honest.yaml", "-o", "train.epochs=4")
    assert "its checkpoints lie in" in line
    assert attack.harmless("train", "honest.yaml", "--fresh", *key).code == 0
    assert sorted(path.name for path in big.glob("step-*")) == ["step-00000003", "step-00000006"]


def test_two_runs_cannot_keep_their_checkpoints_in_one_folder(attack, planted, outside):
    key = ("-o", f"train.checkpoint.path={outside / 'ckpt'}")
    assert attack.harmless("train", "honest.yaml", "--run", "a", *key).code == 0
    line = attack.refused("train", "honest.yaml", "--run", "b", *key)
    assert f"holds the checkpoints of {attack.folder / 'a'}" in line
    assert "is no checkpoint" in attack.refused(
        "train", "honest.yaml", "--run", "b", "-o", f"train.checkpoint.path={outside}"
    )


# --resume


@pytest.mark.parametrize("place", ["tensorboard/x", "checkpoints/y", "checkpoints/step-00000006/z"])
@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "pipe"])
def test_resume_copies_nothing_through_a_link(attack, planted, outside, place, kind):
    (outside / "id_ed25519").write_text("key")
    if kind == "pipe":
        os.mkfifo(planted / place)
    else:
        (planted / place).symlink_to(outside if "folder" in kind else outside / "id_ed25519")
    shutil.move(planted, attack.folder / "stranger")
    outcome = attack.harmless(
        "train", "honest.yaml", "--resume", "stranger", "--run", "mine", *MORE
    )
    assert outcome.code == 2
    assert place in outcome.err
    assert not [path for path in (attack.folder / "mine").rglob("*") if path.name == "id_ed25519"]


def test_resume_copies_what_a_run_has_made_and_nothing_else(attack, planted):
    (planted / "tensorboard" / "notes.txt").write_text(WORK)
    (planted / "checkpoints" / "notes").mkdir()
    shutil.move(planted, attack.folder / "other")
    outcome = attack.harmless("train", "honest.yaml", "--resume", "other", "--run", "mine", *MORE)
    assert outcome.code == 0
    names = {path.name for path in (attack.folder / "mine").rglob("*")}
    assert not names & {"notes.txt", "notes"}
    assert "step-00000009" in names


# folders that are no run


FOREIGN = {
    "a project": {
        "config.yaml": "# mine\n",
        "checkpoints/llama.safetensors": "x",
        "data.json": "{}",
    },
    "documents of another program": {
        "config.yaml": "model: x\n",
        "plan.json": '{"phases": []}',
        "data.json": '{"inputs": [], "classes": 3}',
    },
    "a lock of another program": {LOCK: "pid 17", "notes.txt": "x"},
    "curves of another program": {"metrics.jsonl": '{"step": 1}\n', "tensorboard/mine": "x"},
    "one text": {"thesis.tex": WORK},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("flags", [(), ("--fresh",)], ids=["train", "fresh"])
@pytest.mark.parametrize("is_here", [False, True], ids=["named", "the current folder"])
def test_a_folder_that_is_no_run_is_refused_and_stays_as_it_is(
    attack, config, files, flags, is_here, monkeypatch
):
    attack.write("honest.yaml", config)
    for name, text in files.items():
        attack.write(f"project/{name}", text)
    before = attack.tree(attack.folder / "project")
    if is_here:
        attack.write("project/points.csv", (attack.folder / "points.csv").read_text())
        before = attack.tree(attack.folder / "project")
        monkeypatch.chdir(attack.folder / "project")
    run = "." if is_here else "project"
    attack.refused("train", attack.folder / "honest.yaml", "--run", run, *flags)
    assert attack.tree(attack.folder / "project") == before


def test_fresh_removes_what_a_run_has_made_and_nothing_else(attack, planted):
    mine = {
        "thesis.tex": WORK,
        "checkpoints/llama.safetensors": "x",
        "checkpoints/step-7/a": "x",
        "checkpoints/step-00000099/thesis.tex": "x",
        "checkpoints/.tmp-step-00000001/thesis.tex": "x",
        "tensorboard/events.txt": "x",
    }
    for name, text in mine.items():
        attack.write(f"runs/honest/{name}", text)
    outcome = attack.harmless("train", "honest.yaml", "--fresh", "-o", "train.epochs=1")
    assert outcome.code == 0
    assert all((planted / name).read_text() == text for name, text in mine.items())
    steps = {path.name for path in (planted / "checkpoints").glob("step-*")}
    assert steps == {"step-7", "step-00000003", "step-00000099"}


def test_a_folder_in_the_place_of_a_checkpoint_is_moved_aside_and_told(attack, planted):
    attack.write("runs/honest/checkpoints/step-00000009/thesis.tex", WORK)
    outcome = attack.harmless("train", "honest.yaml", *MORE)
    assert outcome.code == 0
    aside = planted / "checkpoints" / "foreign-1-step-00000009"
    assert (aside / "thesis.tex").read_text() == WORK
    assert f"it is {aside.name} now" in outcome.err
    assert (planted / "checkpoints" / "step-00000009" / "MANIFEST.json").is_file()


def test_a_run_copied_without_its_hidden_files_is_still_a_run(attack, planted):
    (planted / LOCK).unlink()
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0


def test_a_run_copied_with_its_lock_alone_begins_anew(attack, planted):
    for path in planted.iterdir():
        if path.name != LOCK:
            disk.remove(path)
    assert attack.harmless("train", "honest.yaml").code == 0


def test_a_folder_that_became_foreign_after_the_run_was_built_is_refused(small_run, tmp_path):
    trainer = small_run()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text(WORK)
    with pytest.raises(CheckpointError, match="holds no run"):
        trainer.fit()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


# the cache


def new_store(root, key="k"):
    spec = {"out": RowSpec((2,), "float32")}
    return Store.open(root, key, spec, 4, memory_gb=0, disk_gb=1)


@pytest.mark.parametrize(
    "name", [".old-dotfiles", ".new-thesis", ".old-17-k", ".new-1-abc", ".old-1-0"]
)
def test_folders_of_others_in_the_cache_are_neither_listed_nor_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text(WORK)
    new_store(tmp_path).close()
    assert [entry.key for entry in entries(tmp_path)] == ["k"]
    assert (tmp_path / name / "thesis.tex").read_text() == WORK


def test_what_a_killed_process_has_left_in_the_cache_is_removed(tmp_path):
    new_store(tmp_path).close()
    shutil.copytree(tmp_path / "k", tmp_path / ".new-17-k")
    entries(tmp_path)
    assert not (tmp_path / ".new-17-k").exists()


def test_a_folder_with_a_foreign_file_is_no_store(tmp_path):
    new_store(tmp_path).close()
    (tmp_path / "k" / "thesis.tex").write_text(WORK)
    assert entries(tmp_path) == []
    with pytest.raises(StoreError, match="no store 'k'"):
        remove_store(tmp_path, "k")
    with pytest.raises(StoreError, match="is not a folder that finetune made"):
        new_store(tmp_path)
    assert (tmp_path / "k" / "thesis.tex").read_text() == WORK


@pytest.mark.parametrize("name", ["rows-0", "seals", "lock", "meta.json"])
@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_a_store_is_not_written_through_a_link(tmp_path, name, kind):
    new_store(tmp_path / "cache").close()
    target = tmp_path / "outside"
    shutil.copy(tmp_path / "cache" / "k" / name, target)
    before = target.read_bytes(), target.stat().st_mtime_ns
    (tmp_path / "cache" / "k" / name).unlink()
    if kind == "link":
        (tmp_path / "cache" / "k" / name).symlink_to(target)
    else:
        os.link(target, tmp_path / "cache" / "k" / name)
    store = new_store(tmp_path / "cache")
    import torch

    store.write(torch.arange(4), {"out": torch.ones(4, 2)})
    store.close()
    for entry in entries(tmp_path / "cache"):
        remove_store(tmp_path / "cache", entry.key)
    assert (target.read_bytes(), target.stat().st_mtime_ns) == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_the_lock_of_the_cache_must_be_a_file(tmp_path, kind):
    (tmp_path / "cache").mkdir()
    match kind:
        case "link":
            (tmp_path / "cache" / ".lock").symlink_to(tmp_path / "new.sh")
        case "pipe":
            os.mkfifo(tmp_path / "cache" / ".lock")
        case _:
            (tmp_path / "cache" / ".lock").mkdir()
    with pytest.raises(StoreError):
        entries(tmp_path / "cache")
    assert not (tmp_path / "new.sh").exists()


# TensorBoard, which follows every link


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """Commands that would have taken the place of this process."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda *command: commands.append(command))
    return commands


@pytest.mark.parametrize(
    "name", ["honest/tensorboard/x", "honest/x", "x", "honest/checkpoints/step-00000006/x"]
)
def test_tensorboard_is_not_shown_a_link_that_leads_elsewhere(attack, planted, outside, name):
    (attack.folder / "runs" / name).symlink_to(outside)
    line = attack.refused("tensorboard", "runs")
    assert line.startswith(f"runs/{name}: is a link that leads elsewhere")


def test_tensorboard_may_be_shown_a_link_to_a_run_beside_it(attack, planted, started):
    (attack.folder / "runs" / "best").symlink_to("honest")
    attack.harmless("tensorboard", "runs")
    assert started
    (attack.folder / "runs" / "loop").symlink_to(".")
    attack.refused("tensorboard", "runs")


# the pieces


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    disk.replace_file(path, b"old")
    (tmp_path / ".a.json.tmp").mkdir()
    with pytest.raises(OSError, match=r"directory|not permitted"):
        disk.replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_errors_of_names_that_are_taken_say_what_lies_there(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(FinetuneError, match="is a folder, not a file"):
        RunFolder(tmp_path).refuse_links()


def test_a_manifest_of_a_run_is_not_read_through_a_link(attack, planted, outside):
    (outside / "proof.json").write_text(json.dumps({"intact": True, "phases": []}))
    (planted / "freeze_proof.json").unlink()
    (planted / "freeze_proof.json").symlink_to(outside / "proof.json")
    assert "freeze_proof.json: is a link" in attack.refused("doctor", planted)
