"""Tests of tasks: modules beside them are found; a package of the user's own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def make_package(tmp_path, monkeypatch):
    """Write a package that can be imported until the test is over."""
    made = []

    def make(name, code):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        made.append(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)
