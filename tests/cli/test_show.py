"""`show` explains what the schema holds, and nothing else."""

import json
from pathlib import Path

import pytest

from finetune.config.catalogue import LAYERS, OPTIMIZERS, TRANSFORMS
from finetune.config.reference import entries, keys_at, kinds
from finetune.config.schema import schema

PAGE = Path(__file__).parents[2] / "docs" / "start" / "index.md"


@pytest.fixture(scope="module")
def root():
    return schema()


@pytest.fixture(scope="module")
def named(root):
    found = {kind: {} for kind in kinds()}
    for entry in entries(root):
        found[entry.kind][entry.name] = entry
    return found


def test_every_kind_has_the_entries_of_the_schema(named):
    assert set(LAYERS) <= set(named["layers"])
    assert set(TRANSFORMS) <= set(named["transforms"])
    assert set(OPTIMIZERS) == set(named["optimizers"])
    assert set(named["methods"]) >= {"ulmfit", "lp_ft", "lisa", "bitfit", "gradual"}
    assert set(named["selectors"]) == {
        *("name", "regex", "type", "kind", "depth", "rows", "all", "not")
    }
    assert all(entry.text for some in named.values() for entry in some.values())


def test_an_entry_shows_its_keys_as_the_schema_has_them(root, named):
    shown = {key.name for key in named["schedules"]["cosine"].keys}
    assert shown == set(root["$defs"]["CosineSchedule"]["properties"]) - {"type"}
    (columns,) = named["transforms"]["standardize"].keys
    assert columns.is_required


def test_a_key_that_leaves_the_schema_leaves_show(root):
    told = keys_at(root, "freeze.phases.until")
    assert told[0].text == root["$defs"]["PhaseConfig"]["properties"]["until"]["description"]
    without = json.loads(json.dumps(root))
    del without["$defs"]["PhaseConfig"]["properties"]["until"]
    assert keys_at(without, "freeze.phases.until") == []


def test_the_page_shows_what_show_prints(command_line):
    _, _, session = PAGE.read_text("utf-8").partition("```console\n$ finetune show")
    session = "$ finetune show" + session.partition("```")[0]
    for block in session.split("$ finetune ")[1:]:
        command, _, said = block.partition("\n")
        assert command_line(*command.split()).out == said


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("losses", "focal"),
        ("conv2D", "{type: Conv2d, "),
        ("optimizer.lr", "Peak learning rate"),
        ("SGDR", "cosine"),
        ("checkpoint", "train.checkpoint: {"),
        ("learning_rate", "optimizer.lr: "),
        ("methods", "(Kumar et al. 2022"),
        (None, "finetune show NAME explains"),
    ],
)
def test_a_kind_a_name_a_key_or_a_word_is_explained(command_line, name, wanted):
    shown = command_line("show", *([] if name is None else [name]))
    assert shown.code == 0
    assert wanted in shown.out


def test_json_is_one_document(command_line):
    told = json.loads(command_line("show", "cosine", "--json").out)
    assert told["entries"][0]["yaml"] == "{type: cosine}"
    assert json.loads(command_line("show", "--json").out)["triggers"]


def test_an_unknown_name_names_the_nearest(command_line):
    shown = command_line("show", "cosin_e")
    assert shown.code == 2
    assert "did you mean 'cosine'?" in shown.err
