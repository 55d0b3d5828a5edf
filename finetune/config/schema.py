"""The JSON Schema of a config, for completion and checks in editors; it knows short forms too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from finetune.config.base import Node
from finetune.config.bounds import MAX_COUNT
from finetune.config.catalogue import (
    INFERRED,
    LAYERS,
    METRICS_OF_CLASSES,
    METRICS_OF_LABELS,
    METRICS_OF_NUMBERS,
    OPTIMIZERS,
    TRANSFORMS,
    Argument,
    KnownClasses,
)
from finetune.config.descriptions import descriptions
from finetune.config.run import RunConfig
from finetune.config.task_base import MeasuredTask

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_EXTENDS = {
    "description": "Files to lay this one over, relative to it; the first is at the bottom.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "list": "array",
    "null": "null",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a config file as plain data."""
    root = RunConfig.model_json_schema(by_alias=True)
    nodes = root["$defs"]
    _describe(root, RunConfig)
    for node in _nodes_below(Node):
        if node.__name__ in nodes:
            _describe(nodes[node.__name__], node)
    # No field of `RunConfig`: it is gone once the files are merged.
    root["properties"]["extends"] = _EXTENDS
    _list_classes(nodes, "TorchLayer", LAYERS)
    _list_classes(nodes, "VisionTransform", TRANSFORMS)
    _list_classes(nodes, "OptimizerConfig", OPTIMIZERS)
    _list_classes(nodes, "ClassMetric", METRICS_OF_CLASSES)
    _list_classes(nodes, "LabelMetric", METRICS_OF_LABELS)
    _list_classes(nodes, "NumberMetric", METRICS_OF_NUMBERS)
    _allow_short_selectors(root)
    _allow_short_forms(nodes)
    root["properties"]["task"] = _or_a_list(root["properties"]["task"], nodes)
    # A file that extends another one may leave out what that one has.
    required = {"required": root.pop("required")}
    return {"$schema": _DRAFT, **root, "anyOf": [required, {"required": ["extends"]}]}


def _nodes_below(node: type[Node]) -> Iterator[type[Node]]:
    """Yield every subclass of `node`, at any depth."""
    for kind in node.__subclasses__():
        yield kind
        yield from _nodes_below(kind)


def _describe(schema: dict[str, Any], node: type[Node]) -> None:
    """Put the descriptions of a node's fields into its schema; mutates `schema`."""
    for name, text in descriptions(node).items():
        schema["properties"][node.model_fields[name].alias or name]["description"] = text


def _list_classes(nodes: dict[str, Any], name: str, table: KnownClasses) -> None:
    """Replace the open node `name` by one node per class of `table`; mutates `nodes`."""
    # The node itself allows any further key; for an editor each class has its own list.
    open_node = nodes[name]
    variants = []
    for type_name, entry in table.items():
        needed = [n for n, one in entry.arguments.items() if one.required and n not in INFERRED]
        arguments = {n: _argument(one, table.words) for n, one in entry.arguments.items()}
        named = {"type": {"const": type_name}}
        variants.append(
            {
                "title": type_name,
                "type": "object",
                "properties": {**open_node["properties"], **named, **arguments},
                "required": [*open_node["required"], *needed],
                "additionalProperties": False,
            }
        )
    nodes[name] = {"title": name, "description": open_node["description"], "oneOf": variants}


def _argument(argument: Argument, words: Sequence[str]) -> dict[str, Any]:
    """Return the JSON Schema for the values that an argument of a layer or optimizer may have.

    Args:
        argument: Types, bounds and choices of the argument.
        words: Words that are allowed in place of an integer, such as `classes`.
    """
    choices = {"enum": list(argument.choices)}
    if argument.choices and argument.kinds == {"str"}:
        return choices
    kinds = argument.kinds - ({"str"} if argument.choices else set())
    plain: dict[str, Any] = {"type": [_TYPES[kind] for kind in _TYPES if kind in kinds]}
    if argument.kinds & {"int", "float"}:
        plain |= {"minimum": argument.bounds.least, "maximum": argument.bounds.most}
    if argument.choices:
        return {"anyOf": [plain, choices]}
    # `classes` and `categories` stand for numbers that only the data knows.
    if words and "int" in argument.kinds and "str" not in argument.kinds:
        return {"anyOf": [plain, *({"const": word} for word in words)]}
    return plain


def _allow_short_selectors(root: dict[str, Any]) -> None:
    """Allow a text as a selector, and a list of selectors or a text as `freeze`; mutates `root`."""
    nodes = root["$defs"]
    short = {"type": "string", "description": "A name, or a glob over names; `!` takes out again."}
    long = nodes["Not"]["properties"]["not"]["oneOf"]
    # pydantic writes the union out wherever it is used; one definition keeps the schema readable.
    _replace(root, "oneOf", long, {"$ref": "#/$defs/Selector"})
    nodes["Selector"] = {"anyOf": [short, *long]}
    freeze = root["properties"]["freeze"]
    freeze["anyOf"].insert(0, {"type": "array", "items": {"$ref": "#/$defs/Selector"}})
    freeze["anyOf"].insert(1, short)


def _or_a_list(task: dict[str, Any], nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a task that may also be a plain list of tasks."""
    several = nodes["TaskList"]["properties"]["tasks"]
    plain = {key: value for key, value in several.items() if key not in ("title", "description")}
    one = {key: value for key, value in task.items() if key != "description"}
    return {"anyOf": [one, plain], "description": task["description"]}


def _replace(node: Any, key: str, value: Any, by: dict[str, Any]) -> None:
    """Replace each mapping below `node` that has `value` at `key`; its description stays."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict) and child.get(key) == value:
            description = {k: v for k, v in child.items() if k == "description"}
            child.clear()
            child.update(description, **by)
        elif isinstance(child, dict | list):
            _replace(child, key, value, by)


def _allow_short_forms(nodes: Mapping[str, Any]) -> None:
    """Allow one entry for a list of one, and a number for a slice; mutates `nodes`."""
    for task in set(_nodes_below(MeasuredTask)):
        losses = nodes[task.__name__]["properties"]["losses"]
        losses["anyOf"].append(losses["anyOf"][0]["items"])
    rates = nodes["PhaseConfig"]["properties"]["lr"]
    number = nodes["RateConfig"]["properties"]["lr"]
    rates["additionalProperties"] = {"anyOf": [number, rates["additionalProperties"]]}
    for name in ("features", "targets"):
        _also_a_number([nodes["RandomSource"]["properties"][name]], least=1)
    _also_a_number([nodes["ByDepth"]["properties"]["depth"]], least=-MAX_COUNT)
    _also_a_number(nodes["ArrayColumn"]["properties"]["take"]["anyOf"][:1], least=-MAX_COUNT)


def _also_a_number(values: Iterable[dict[str, Any]], *, least: int) -> None:
    """Allow a whole number from `least` on beside the type of each schema; mutates them."""
    for value in values:
        value |= {
            "type": [value["type"], "integer"], "minimum": least, "maximum": MAX_COUNT,
        }  # fmt: skip
