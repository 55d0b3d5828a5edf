"""`scripts/measure_code.py` counts what it says, on a package of three files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_code.py"


@pytest.fixture
def measured(tmp_path):
    files = {
        "one/parts.py": "# why\nfrom small.two import parts\n\n\nclass Part:\n    pass\n",
        "two/parts.py": (
            '"""# no comment"""\nfrom small.one.parts import Part\n\n\n'
            "def f():\n    x = 1\n    return x\n"
        ),
        "alone.py": "import small.two.parts\n\n\nclass Part:\n    pass\n",
    }
    for name, text in files.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "small"), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_lines_comments_functions_and_classes_are_counted_by_room(measured):
    one, two, whole = (measured["rooms"][name] for name in ("one", "two", "all"))
    assert (one["files"], one["lines"], one["classes"]) == (1, 6, 1)
    assert one["comment_share"] == pytest.approx(16.7)
    assert (two["comment_share"], two["functions"], two["longest_function"]) == (0.0, 1, 3)
    assert (whole["files"], whole["lines"], whole["longest_file"]) == (3, 18, 7)


def test_cycles_and_double_names_are_found(measured):
    faults = measured["faults"]
    assert faults["import cycles"] == ["small.one.parts <-> small.two.parts"]
    assert faults["rooms that import each other"] == ["one <-> two"]
    assert faults["file names in two rooms"] == ["parts.py: one, two"]
    assert faults["class names in two rooms"] == ["Part: alone, one"]
