"""The page of guarantees names, for each kind of fault, code and tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "guarantees.md").read_text().partition("## Faults at the door")[2]
ROWS = [line.split("|")[1:4] for line in TABLE.splitlines() if line.startswith("| ")][1:]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_each_kind_of_fault_has_a_place_and_tests():
    assert len(ROWS) == 17
    assert all(named(places) and named(tests) for _, places, tests in ROWS)


def test_places_of_faults_are_there():
    for _, places, _ in ROWS:
        for place in named(places):
            file, _, name = place.partition(": ")
            body = ast.parse((ROOT / "finetune" / file).read_text()).body
            kinds = ast.FunctionDef | ast.ClassDef
            names = {node.name for node in body if isinstance(node, kinds)}
            assert not name or name in names, place


def test_tests_of_faults_are_there():
    missing = [name for *_, tests in ROWS for name in named(tests)]
    assert [name for name in missing if not (ROOT / "tests" / "door" / name).is_file()] == []
