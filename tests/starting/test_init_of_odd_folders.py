"""Folders of odd kinds: `init` writes a config that `plan` accepts, or tells why in one line."""

import pytest
from odd_folders import REFUSED, WORKS, semicolons_and_latin_1


@pytest.mark.parametrize("kind", WORKS)
def test_init_writes_a_config_that_plan_accepts(kind, tmp_path, monkeypatch, command_line):
    make, arguments, wanted = WORKS[kind]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", make(tmp_path / "data"), "--out", "c.yaml", *arguments)
    assert shown.code == 0, shown.err
    text = (tmp_path / "c.yaml").read_text("utf-8")
    assert [part for part in wanted if part not in text] == [], text
    planned = command_line("plan", "c.yaml")
    assert planned.code == 0, planned.err
    assert "far from 1" not in planned.out


@pytest.mark.parametrize("kind", REFUSED)
def test_init_tells_in_one_line_why_there_is_no_config(kind, tmp_path, monkeypatch, command_line):
    make, wanted = REFUSED[kind]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", make(tmp_path / "data"), "--out", "c.yaml")
    assert shown.code == 2
    _, *hint = shown.err.splitlines()
    assert wanted in shown.err
    assert len(hint) <= 1
    assert all(line.startswith("    ") for line in hint)
    assert not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--target", "kauf", "--inputs", "kauf"], "'kauf' is both an input and what is learnt"),
        (["--epochs", "9" * 20], "--epochs"),
        (["--batch-size", "9" * 20], "--batch-size"),
    ],
    ids=["target as input", "epochs", "batch size"],
)
def test_what_no_config_takes_is_refused_and_nothing_is_written(
    arguments, wanted, tmp_path, command_line
):
    path = semicolons_and_latin_1(tmp_path)
    shown = command_line("init", path, "--out", tmp_path / "c.yaml", *arguments)
    assert shown.code == 2
    assert wanted in shown.err
    assert not (tmp_path / "c.yaml").exists()
