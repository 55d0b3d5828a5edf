"""Stores of known rows."""

import importlib
from pathlib import Path

import pytest

from finetune.store.store import Store


@pytest.fixture
def known(monkeypatch):
    """Return the module of known rows."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("known_rows")


@pytest.fixture
def open_store(tmp_path, known):
    """Open stores below one folder; those still open are closed when the test is over."""
    opened = []

    def opening(
        key="k", *, specs=known.SPECS, num_rows=known.NUM_ROWS, memory_gb=0.0, disk_gb=1.0, **more
    ):
        budgets = {"memory_gb": memory_gb, "disk_gb": disk_gb}
        opened.append(Store.open(tmp_path, key, specs, num_rows, **budgets, **more))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()
