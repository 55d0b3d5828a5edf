"""A secret in any position of a config that takes a value is told and written nowhere.

The positions are taken from the schema, so that a field of tomorrow is tried as well.
"""

import types
import typing
from typing import Any, Literal, Union

import pytest
import yaml

from finetune.config.base import Node, OpenNode
from finetune.config.loader import load_config
from finetune.config.run import RunConfig
from finetune.errors import FinetuneError

VALUE = "S3cr3tV4lue"
TOKEN = "${env:TOK}"


def smallest(hint):
    """Return the least that a config may write for a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Node):
        hints = typing.get_type_hints(hint, include_extras=True)
        needed = {n: info for n, info in hint.model_fields.items() if info.is_required()}
        return {info.alias or name: smallest(hints[name]) for name, info in needed.items()}
    if origin is Literal:
        return parts[0]
    if origin in (tuple, list):
        return [smallest(parts[0])]
    if parts and origin is not dict:
        return smallest(next(part for part in parts if part is not types.NoneType))
    return {dict: {}, str: "x", int: 1, float: 0.5, bool: True}.get(origin or hint, 1)


def filled(hint, around=()):
    """Yield what a config may write for a type, with the token in one position of it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Node):
        yield from filled_nodes(hint, around)
    elif origin is dict:
        yield from ({"x": value} for value in filled(parts[1], around))
    elif origin in (tuple, list):
        yield from ([value] for value in filled(parts[0], around))
    elif origin in (Union, types.UnionType):
        yield from (value for part in parts for value in filled(part, around))
    elif parts and origin is not Literal:
        yield from filled(parts[0], around)
    elif hint is Any:
        yield from (TOKEN, {"x": [f"a {TOKEN}"]}, {"hf_token": TOKEN})
    elif hint is not types.NoneType:
        yield TOKEN


def filled_nodes(node, around):
    if node in around:
        return
    hints = typing.get_type_hints(node, include_extras=True)
    for name, info in node.model_fields.items():
        for value in filled(hints[name], (*around, node)):
            yield smallest(node) | {info.alias or name: value}
    if issubclass(node, OpenNode):
        yield smallest(node) | {"dtype": TOKEN}


@pytest.fixture(scope="session")
def positions():
    """Texts of configs that are honest but for one position, which holds the token."""
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    return [(name, value) for name in RunConfig.model_fields for value in filled(hints[name])]


@pytest.fixture
def documents(positions, config):
    texts = (yaml.safe_dump(config | dict([one]), sort_keys=False) for one in positions)
    return list(dict.fromkeys(texts))


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("TOK", VALUE)


def loaded(path):
    """Return what is told of a config that is wrong, and nothing of one that is right."""
    try:
        load_config(path)
    except FinetuneError as error:
        return f"{error!s}{error!r}"
    return ""


def tells(text):
    return VALUE.casefold() in text.casefold()


@pytest.mark.slow
def test_a_secret_in_any_position_of_a_config_is_not_told(attack, documents):
    told = [loaded(attack.write("x.yaml", document.encode())) for document in documents]
    assert len(told) > 500
    assert 100 < told.count("") < len(told) / 2
    assert [text for text in told if tells(text)] == []


@pytest.mark.slow
def test_a_secret_in_any_position_that_is_valid_is_not_told_by_a_plan(attack, documents):
    for document in documents:
        if not loaded(attack.write("x.yaml", document.encode())):
            outcome = attack.harmless("plan", "x.yaml")
            assert not tells(outcome.out + outcome.err), document
