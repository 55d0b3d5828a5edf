"""Describe the service as OpenAPI, with the runs that it serves, and as a page without scripts."""

from collections.abc import Mapping
from typing import Any

from finetune.data.column_kinds import Kind
from finetune.data.opening import DataFacts
from finetune.importing import require
from finetune.models.network import TensorSpec
from finetune.predict import Predictor
from finetune.serve.refusal import ServiceLimits

# Like `_LARGEST` in `asked_samples.py`, in round numbers: the schema is for people and generators.
_NUMBER = {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38}
_WHOLE = {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1}
_OF_FILES = ("image", "grey image", "audio", "text", "text or nothing")
_FILE = {
    "type": "object",
    "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["base64"],
    "additionalProperties": False,
}


def request_schema(
    runs: Mapping[str, Predictor],
    specs: Mapping[str, Mapping[str, TensorSpec]],
    limits: ServiceLimits,
) -> dict[str, Any]:
    """Return the JSON Schema of a prediction's request.

    Args:
        runs: The runs.
        specs: Shapes of the input columns of each run.
        limits: Of the service.
    """
    columns: dict[str, list[dict[str, Any]]] = {}
    for name in runs:
        facts = runs[name].run.facts
        for column in facts.inputs:
            schema = _value_schema(facts.kinds[column], specs[name].get(column))
            if schema not in columns.setdefault(column, []):
                columns[column].append(schema)
    by_column = {name: _one_of(schemas) for name, schemas in columns.items()}
    item: dict[str, Any] = {
        "type": "object",
        "properties": by_column,
        "required": list(by_column),
        "additionalProperties": False,
    }
    if len(by_column) == 1:
        item = _one_of([item, *by_column.values()])
    return {
        "type": "object",
        "properties": {
            "inputs": {"type": "array", "items": item, "minItems": 1, "maxItems": limits.items},
            "runs": {
                "type": "array",
                "items": {"type": "string", "enum": list(runs)},
                "minItems": 1,
                "description": "Runs that predict; all if left out.",
            },
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }


def files_schema(runs: Mapping[str, Predictor], limits: ServiceLimits) -> dict[str, Any] | None:
    """Return the JSON Schema of uploaded files; None if no run takes any."""
    takers = [name for name in runs if takes_files(runs[name].run.facts)]
    if not takers:
        return None
    one = {"type": "string", "contentMediaType": "application/octet-stream"}
    named = {"type": "array", "items": {"type": "string", "enum": takers}, "minItems": 1}
    files = {"type": "array", "items": one, "minItems": 1, "maxItems": limits.items}
    return {
        "type": "object",
        "properties": {"files": files, "runs": named},
        "required": ["files", *(["runs"] if len(takers) < len(runs) else [])],
        "additionalProperties": False,
    }


def takes_files(facts: DataFacts) -> bool:
    """Tell whether a file can be a sample: there is one column, of pictures, sounds or texts."""
    kinds = [facts.kinds[name] for name in facts.inputs]
    return len(kinds) == 1 and kinds[0] in _OF_FILES


def _one_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _value_schema(kind: Kind, spec: TensorSpec | None) -> dict[str, Any]:
    """Return the schema of a value of a kind; of a shape where it is known."""
    match kind:
        case "text" | "context":
            return {"type": "string"}
        case "text or nothing":
            return {"type": ["string", "null"]}
        case "words":
            return {"type": "array", "items": {"type": "string"}}
        case "image" | "grey image" | "audio":
            return _FILE
        case "number or nothing":
            return _NUMBER | {"type": ["number", "null"]}
        case "number" | "whole number":
            number = _NUMBER if kind == "number" else _WHOLE
            for side in reversed(spec.shape if spec is not None else ()):
                number = {"type": "array", "items": number, "minItems": side, "maxItems": side}
            return number
        case _:
            return {}


def page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page of HTML that loads nothing."""
    jinja2 = require("jinja2", extra="serve")
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    found: str = template.render(document=document)
    return found


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ document.info.title }}</title>
<style>body{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}
code,pre{background:#f2f2f2;overflow:auto}pre{padding:.5rem}</style></head><body>
<h1>{{ document.info.title }}</h1><p>{{ document.info.description }}
The whole description: <a href="/openapi.json">openapi.json</a>.</p>
{% for path, methods in document.paths.items() %}{% for method, what in methods.items() %}
<h2><code>{{ method | upper }} {{ path }}</code></h2><p>{{ what.description or what.summary }}</p>
{% if what.parameters %}<pre>{{ what.parameters | tojson(2) }}</pre>{% endif %}
{% if what.requestBody %}<pre>{{ what.requestBody.content | tojson(2) }}</pre>{% endif %}
<ul>{% for code, answer in what.responses.items() %}<li>{{ code }}: {{ answer.description }}</li>
{% endfor %}</ul>{% endfor %}{% endfor %}</body></html>
"""
