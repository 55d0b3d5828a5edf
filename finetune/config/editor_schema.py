"""The JSON Schema that editors take: a file that extends another one may hold parts of sections."""

from typing import Any

from finetune.config.schema import schema

_NODES = "#/$defs/"
_PART = "Part"
_OVER_ALL_KEYS = {"discriminator", "required"}


def editor_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file as plain data.

    It is `schema()` for a file that stands alone. In a file with `extends`, mappings are laid over
    those of the base, so that `optimizer: {lr: 1e-4}` is right without a type. Lists replace those
    of the base, so their entries are whole.
    """
    root = schema()
    whole = root.pop("properties")
    nodes: dict[str, Any] = {}
    parts = {key: _part(value, root["$defs"], nodes) for key, value in whole.items()}
    root["$defs"] |= nodes
    # it knows only the keys beside it
    others = {"additionalProperties": root.pop("additionalProperties")}
    needed = root.pop("anyOf")[0]
    return {
        **root,
        "if": {"required": ["extends"]},
        "then": {"properties": parts, **others},
        "else": {"properties": whole, **others, **needed},
    }


def _part(rule: Any, whole: dict[str, Any], nodes: dict[str, Any]) -> Any:
    """Return a schema for some of the keys that `rule` asks for; adds definitions to `nodes`."""
    if isinstance(rule, list):
        return [_part(one, whole, nodes) for one in rule]
    if not isinstance(rule, dict):
        return rule
    made: dict[str, Any] = {}
    for key, value in rule.items():
        if key in _OVER_ALL_KEYS:
            continue
        if key == "properties":
            made[key] = {name: _part(one, whole, nodes) for name, one in value.items()}
        elif key == "$ref":
            made[key] = _named_part(value.removeprefix(_NODES), whole, nodes)
        else:
            # without its type, a mapping may be a part of several nodes
            name = "anyOf" if key == "oneOf" else key
            made[name] = value if key == "items" else _part(value, whole, nodes)
    return made


def _named_part(name: str, whole: dict[str, Any], nodes: dict[str, Any]) -> str:
    """Return a reference to the part of a definition, which is added to `nodes` once."""
    part = name + _PART
    if part not in nodes:
        nodes[part] = {}  # definitions may hold themselves
        nodes[part] = _part(whole[name], whole, nodes)
    return _NODES + part
