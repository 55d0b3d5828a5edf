"""The reference is made from schema, verbs and docstrings; a key that goes is missed."""

import copy
import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
MADE_BY = "run: python scripts/make_reference.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "make_reference.py"))


def test_the_reference_is_what_the_code_says(script):
    made = script["pages"]()
    assert {path.name for path in PAGES.glob("*.md")} == set(made), MADE_BY
    for name, text in made.items():
        assert (PAGES / name).read_text(encoding="utf-8") == text, f"{name}: {MADE_BY}"


@pytest.mark.slow
def test_a_key_without_the_schema_is_missing_from_its_page(script, monkeypatch):
    schema = script["schema"]()
    row = "| `patience` | whole number | `2` | Evaluations in a row without improvement. |"
    assert row in script["pages"]()["keys_freeze.md"]
    without = copy.deepcopy(schema)
    del without["$defs"]["OnPlateau"]["properties"]["patience"]
    monkeypatch.setitem(script["pages"].__globals__, "schema", lambda: without)
    assert row not in script["pages"]()["keys_freeze.md"]


@pytest.mark.slow
def test_every_key_of_the_schema_has_a_row(script):
    schema, text = script["schema"](), "\n".join(script["pages"]().values())
    keys = {
        key
        for node in schema["$defs"].values()
        for key in node.get("properties", {})
        if key not in script["_KINDS"]
    }
    assert len(keys) > 150
    assert [key for key in sorted(keys) if f"| `{key}` |" not in text] == []


NO_KEYS = {"eel", "old.", "bbox", "...", "file", "rank N", "other runs alone"}
"""Names in texts that look like YAML: of classes, tensors, boxes, lines that are printed."""


def keys_of(value):
    """Yield all keys of a piece of YAML, those with dots in parts."""
    if isinstance(value, list):
        for one in value:
            yield from keys_of(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from [key] if key in NO_KEYS else str(key).split(".")
            yield from keys_of(one)


def properties_of(schema):
    """Yield the names of all properties of a schema, also of arguments of layers and transforms."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
    if isinstance(schema, dict | list):
        for one in schema.values() if isinstance(schema, dict) else schema:
            yield from properties_of(one)


def keys_in_sentences(page, sections):
    """Return the keys of the config that the sentences of a page name, and where."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = {}
    for piece in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        # A name of a file, or a sample of data in JSON, is no piece of a config.
        if re.search(r"^\{\"|\.py: |\.(json|csv|onnx|pt2|safetensors|yaml)\b", piece):
            continue
        if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", piece):
            parts = [part for part in piece.split(".") if not part.isdigit()]
            found |= dict.fromkeys(parts if parts[0] in sections else (), piece)
        elif ": " in piece:
            found |= dict.fromkeys(keys_of(yaml.safe_load(piece)), piece)
    return found


def test_every_key_that_a_sentence_names_is_one_of_the_schema(script):
    schema = script["schema"]()
    keys = set(properties_of(schema)) | NO_KEYS
    docs = [page for page in PAGES.parent.rglob("*.md") if page.parent != PAGES]
    named = {
        (key, page.name): piece
        for page in [ROOT / "README.md", *docs]
        for key, piece in keys_in_sentences(page, schema["properties"]).items()
    }
    assert len(named) > 200
    assert {piece: page for (key, page), piece in named.items() if key not in keys} == {}
