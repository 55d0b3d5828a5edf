"""`finetune runs --rm` removes what a run of ours has written, and nothing else."""

import json
import os
from pathlib import Path

import pytest


def removed(attack, run):
    return attack.harmless("runs", "--rm", run, "--yes")


def test_a_folder_that_is_no_run_stays(attack, planted):
    work = attack.write("work/config.yaml", "mine")
    attack.write("work/checkpoints/step-00000001/weights.safetensors", "mine")
    before = attack.tree(attack.folder)
    outcome = removed(attack, "work")
    assert outcome.code == 2
    assert "holds no run" in outcome.err
    assert attack.tree(attack.folder) == before
    assert work.read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "config.yaml", "summary.json"])
def test_a_link_in_a_run_is_not_followed(attack, planted, name):
    outside = attack.folder / "outside"
    outside.mkdir()
    (outside / "work").write_text("mine")
    taken = planted / name
    taken.rename(attack.folder / "aside")
    taken.symlink_to(outside if (attack.folder / "aside").is_dir() else outside / "work")
    assert removed(attack, "runs/honest").code == 2
    assert (outside / "work").read_text() == "mine"
    assert (planted / "plan.json").is_file()


def test_a_run_that_is_a_link_stays(attack, planted):
    (attack.folder / "link").symlink_to(planted)
    assert "link" in removed(attack, "link").err
    assert (planted / "summary.json").is_file()


def test_files_of_others_in_a_run_stay(attack, planted):
    mine = {
        "thesis.tex",
        "report.html",
        "checkpoints/best.pt",
        "checkpoints/step-00000099/notes.txt",
        "tensorboard/notes.txt",
    }
    for name in mine:
        attack.write(f"runs/honest/{name}", "mine")
    outcome = removed(attack, "runs/honest")
    assert outcome.code == 0
    assert "stay" in outcome.err
    left = {str(p.relative_to(planted)) for p in planted.rglob("*") if p.is_file()}
    assert left == mine


def test_a_forged_config_names_no_folder_to_remove(attack, planted):
    """A place of checkpoints goes with the run only if its lock names this run."""
    attack.write("theirs/step-00000006/weights.safetensors", "mine")
    config = planted / "config.yaml"
    config.write_text(
        config.read_text().replace("keep_last:", "path: ../../theirs\n    keep_last:")
    )
    assert "theirs" in config.read_text()
    removed(attack, "runs/honest")
    assert (attack.folder / "theirs/step-00000006/weights.safetensors").read_text() == "mine"


def test_checkpoints_elsewhere_go_with_their_run(attack, planted):
    place = ("-o", "train.checkpoint.path=../place")
    assert attack.harmless("train", "honest.yaml", "--run", "a", *place).code == 0
    assert (attack.folder / "place").is_dir()
    assert removed(attack, "a").code == 0
    assert not (attack.folder / "place").exists()
    assert not (attack.folder / "a").exists()


def test_a_hard_link_loses_only_the_name_in_the_run(attack, planted):
    private = attack.write("private", "mine")
    (planted / "metrics.jsonl").unlink()
    os.link(private, planted / "metrics.jsonl")
    assert removed(attack, "runs/honest").code == 0
    assert private.read_text() == "mine"


def test_names_of_runs_are_shown_with_hidden_characters_escaped(attack, planted):
    odd = planted.with_name("a\x1b[31m\nb")
    planted.rename(odd)
    shown = attack.harmless("runs").out
    assert "\x1b" not in shown
    assert "\\x1b[31m\\nb" in shown
    (group,) = json.loads(attack.harmless("runs", "--json").out)["groups"]
    assert Path(group["runs"][0]["run"]).name == odd.name
