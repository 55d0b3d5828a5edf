"""A template for each task: it loads as it is, and says what to change."""

import json
import typing

import pytest

from finetune.config.loader import load_config
from finetune.config.task_keys import Task
from finetune.starting.templates_of_tasks import template_names


def types_of_tasks():
    union = typing.get_args(Task)[0]
    return {typing.get_args(node.model_fields["type"].annotation)[0] for node in union.__args__}


def test_each_task_of_the_schema_has_a_template():
    assert set(template_names()) == types_of_tasks() | {"several"}


@pytest.mark.parametrize("name", template_names())
def test_a_template_loads_and_says_what_to_change(name, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", "--template", name)
    assert shown.code == 0, shown.err
    assert f"finetune plan {name}.yaml" in shown.out
    text = (tmp_path / f"{name}.yaml").read_text("utf-8")
    assert "# CHANGE" in text
    config = load_config(tmp_path / f"{name}.yaml")
    assert name in (config.task.type, "several")


def test_an_unknown_template_names_the_nearest(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", "--template", "regresion")
    assert shown.code == 2
    assert "did you mean 'regression'?" in shown.err


def test_a_template_looks_at_no_data(command_line):
    shown = command_line("init", "data.csv", "--template", "regression")
    assert shown.code == 2
    assert "--template looks at no data" in shown.err


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("detection", [{"bbox": [1, 2, 3, 4], "label": "cat"}]),
        ("span", {"text": ["red"], "answer_start": [4]}),
    ],
)
def test_data_that_no_config_is_proposed_for_names_its_template(
    name, cell, tmp_path, monkeypatch, command_line
):
    monkeypatch.chdir(tmp_path)
    rows = [{"about": "abcde"[n % 5], "found": cell} for n in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = command_line("init", "d.jsonl", "--yes")
    assert shown.code == 2
    assert f"finetune init --template {name}" in shown.err
    assert command_line("init", "d.jsonl", "--yes", "--target", "about").code != 1
