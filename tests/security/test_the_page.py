"""SECURITY.md names a test for every attack, and there is such a test."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_attack_on_the_page_has_a_test_that_exists():
    assert len(ROWS) > 20
    for row in ROWS:
        attack, _, test = (cell.strip() for cell in row.strip("|").rsplit("|", 2))
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
        assert named, attack
        assert named[2] in functions_of(named[1]), attack


def test_the_limits_on_the_page_are_those_of_the_code():
    from finetune import reading
    from finetune.config import loader, reader

    for words in (
        f"At most {reader.MAX_BYTES >> 20} MiB a file, {loader.MAX_FILES} files",
        f"{reader.MAX_DEPTH} levels, {reader.MAX_VALUES:,} values",
        f"At most {reading.MAX_JSON_BYTES >> 20} MiB a document or line",
        f"and {reading.MAX_JSON_DEPTH} levels",
        f"At most {reading.MAX_HEADER_BYTES >> 20} MiB of header",
    ):
        assert words in PAGE
