"""A single text in the place of a list of names is taken as a list of one."""

import pytest

from finetune.config.dumping import dump_config
from finetune.config.editor_schema import editor_schema
from finetune.config.loader import load_config
from finetune.config.schema import schema

CONFIG = """
model:
  layers:
    - {name: body, type: Linear, out_features: 8}
    - {name: head, type: Linear, out_features: 1, inputs: body}
data:
  source: {type: csv, path: d.csv, missing: NA}
  inputs: area
  target: price
  transforms:
    - {type: fill, columns: area, with: median}
    - {type: stack, columns: area}
task: {type: regression}
freeze: body
optimizer: {type: AdamW, lr: 0.1, no_decay: head}
train: {epochs: 1}
"""
AS_LISTS = [
    "data.inputs=[area]",
    "data.source.missing=[NA]",
    "data.transforms=[{type: fill, columns: [area], with: median}, {type: stack, columns: [area]}]",
    "freeze=[body]",
    "optimizer.no_decay=[head]",
    "model.layers.1.inputs=[body]",
]


def plain(config):
    return config.model_dump(exclude={"name"})


def test_a_single_name_is_a_list_of_one(config_file):
    assert plain(load_config(config_file)) == plain(load_config(config_file, AS_LISTS))


@pytest.mark.parametrize(
    "phase", ["{name: a, train: head}", "{name: a, freeze: body}", '{name: a, freeze: "!head"}']
)
def test_a_phase_takes_a_single_selector(config_file, phase):
    config = load_config(config_file, [f"freeze={{phases: [{phase}]}}"])
    key, name = phase[1:-1].split(", ")[1].split(": ")
    name = name.strip('"')
    as_list = load_config(config_file, [f"freeze={{phases: [{{name: a, {key}: ['{name}']}}]}}"])
    assert config.freeze == as_list.freeze


def test_a_single_cell_that_means_no_value_may_be_a_number(config_file):
    source = load_config(config_file, ["data.source.missing=-999"]).data.source
    assert source.missing == ("-999",)


@pytest.mark.parametrize("cell", ["1.50", "-999", "007", "1e3", "+5", "0.10"])
def test_a_number_that_stands_for_a_missing_cell_stays_as_it_is_written(config_file, cell):
    """Cells are compared letter by letter: `1.5` would not find `1.50`."""
    config = load_config(config_file, [f"data.source.missing=[{cell}, '?']"])
    assert config.data.source.missing == (cell, "?")
    again = config_file.with_name("again.yaml")
    again.write_text(dump_config(config))
    assert load_config(again).data.source.missing == (cell, "?")
    assert load_config(config_file, [f"data.source.missing={cell}"]).data.source.missing == (cell,)


def test_a_fault_of_a_single_selector_is_told_at_its_key(fault):
    assert fault("freeze=''").startswith("-o freeze: needs at least 1 character(s), got")
    assert "got 3" in fault("data.inputs=3")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.layers.1.inputs=head", "model.layers.1.inputs: takes itself, 'head'"),
        ("model.layers.1={type: add, inputs: body}", "inputs: needs the names of two or more"),
    ],
)
def test_a_single_input_is_checked_like_a_list(fault, override, told):
    assert told in fault(override)


@pytest.mark.parametrize(
    "override", ["freeze.method=lisa", "freeze.phases=[{name: a, train: head}]"]
)
def test_another_form_takes_the_place_of_a_single_name(config_file, override):
    config = load_config(config_file, [override])
    assert config.freeze.phases if "phases" in override else config.freeze.method == "lisa"
    assert any("takes the place of" in note and ": freeze" in note for note in config.notes)


@pytest.mark.slow
def test_editors_take_a_text_and_a_list_of_texts():
    for made in (schema(), editor_schema()):
        nodes = made["$defs"]
        inputs = nodes["DataConfig"]["properties"]["inputs"]["anyOf"]
        assert [one["type"] for one in inputs] == ["string", "array", "null"]
        columns = nodes["StandardizeTransform"]["properties"]["columns"]
        assert [one["type"] for one in columns["anyOf"]] == ["string", "array"]
        assert columns["anyOf"][1]["minItems"] == 1
        assert "minLength" not in columns
        trained = nodes["PhaseConfig"]["properties"]["train"]["anyOf"]
        assert [one["type"] for one in trained] == ["string", "array", "null"]
    assert {"type": "string"}.items() <= schema()["properties"]["freeze"]["anyOf"][1].items()
