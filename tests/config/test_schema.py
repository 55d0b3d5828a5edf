"""The JSON Schema that editors get says the same as the loader."""

import re
from pathlib import Path

import pytest
import yaml

from finetune.config import (
    data,
    freeze,
    loss_keys,
    metric_keys,
    model,
    optim,
    run,
    source_keys,
    task_keys,
    train,
    transform_keys,
)
from finetune.config.base import Node
from finetune.config.descriptions import descriptions
from finetune.config.dumping import dump_config
from finetune.config.loader import load_config
from finetune.config.reader import read_text
from finetune.config.schema import schema

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TYPES = {
    "object": dict,
    "array": tuple,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}


@pytest.fixture(scope="module")
def root():
    return schema()


def fits(value, rule, root):
    """Check a value against the keywords of JSON Schema that the schema uses."""
    if "$ref" in rule:
        target = root
        for step in rule["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return fits(value, target, root)
    checks = [
        any(is_a(value, name) for name in as_list(rule["type"])) if "type" in rule else True,
        any(fits(value, one, root) for one in rule["anyOf"]) if "anyOf" in rule else True,
        sum(fits(value, one, root) for one in rule["oneOf"]) == 1 if "oneOf" in rule else True,
        value in rule.get("enum", [value]),
        value == rule.get("const", value),
    ]
    if isinstance(value, str):
        checks.append(re.search(rule.get("pattern", ""), value))
    if isinstance(value, tuple):
        checks.append(len(value) >= rule.get("minItems", 0))
        checks.append(all(fits(item, rule.get("items", {}), root) for item in value))
    if isinstance(value, dict):
        checks.append(set(rule.get("required", ())) <= set(value))
        known, other = rule.get("properties", {}), rule.get("additionalProperties", {})
        checks.extend(
            fits(item, known[key], root) if key in known else other is not False
            for key, item in value.items()
        )
    return all(checks)


def is_a(value, name):
    return isinstance(value, TYPES[name]) and (name == "boolean") >= isinstance(value, bool)


def as_list(value):
    return value if isinstance(value, list) else [value]


def document(text):
    return read_text(text, None).root.plain()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_fit_the_schema_as_written_and_as_saved(path, root):
    assert fits(document(path.read_text(encoding="utf-8")), root, root)
    assert fits(document(dump_config(load_config(path))), root, root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0", "sed: 0"),
        ("AdamW", "Adamw"),
        ("lr: 1e-3", "lr: 1e-3, beta: 1"),
        ("out_features: classes", "out_feature: classes"),
        ("out_features: classes", "out_features: many"),
        ("out_features: classes", "bias: true"),
        ("textfolder", "textfoldr"),
        ("kind: bias", "kind: bais"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(good, root, old, new):
    assert fits(document(good), root, root)
    assert not fits(document(good.replace(old, new)), root, root)


@pytest.mark.parametrize(
    "freeze_",
    ["[a, '!b', {not: c}, {depth: 3}]", "{phases: [{name: x, freeze: [a, {not: {kind: bias}}]}]}"],
)
def test_the_schema_knows_the_short_forms(good, root, write, freeze_):
    text = good.replace("[encoder, {kind: bias}]", freeze_).replace(
        "{type: classification}", "{type: regression, losses: {type: mse}}"
    )
    text = text.replace("{type: textfolder, path: texts}", "{type: random, features: 3}")
    assert fits(document(text), root, root)
    assert load_config(write(text))


def test_a_file_that_extends_another_may_leave_things_out(root):
    assert fits(document("extends: base.yaml\nseed: 3"), root, root)
    assert not fits(document("seed: 3"), root, root)


def test_every_class_with_its_arguments_is_in_the_schema(root):
    linear = next(one for one in root["$defs"]["TorchLayer"]["oneOf"] if one["title"] == "Linear")
    assert {"in_features", "out_features", "bias", "name"} <= set(linear["properties"])
    assert linear["required"] == ["type", "out_features"]


def nodes():
    modules = (
        data,
        source_keys,
        transform_keys,
        freeze,
        loss_keys,
        metric_keys,
        model,
        optim,
        run,
        task_keys,
        train,
    )
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Node):
                yield value


@pytest.mark.parametrize("node", sorted(set(nodes()), key=lambda node: node.__name__))
def test_every_node_and_field_is_documented(node):
    assert node.__name__.startswith("_") or node.__doc__
    assert set(descriptions(node)) == set(node.model_fields)


def test_the_schema_is_plain_yaml_data(root):
    assert yaml.safe_load(yaml.safe_dump(root)) == root
