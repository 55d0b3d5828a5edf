"""The reference is made from schema, verbs and docstrings; a key that goes is missed."""

import copy
import runpy
from pathlib import Path

import pytest

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
