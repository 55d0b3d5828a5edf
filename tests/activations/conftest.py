"""Small runs with and without a store."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return the module of small runs; their stores lie in a folder of their own."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("run_pairs")


@pytest.fixture
def odd_runs(runs, always, tmp_path):
    """Train a sly network with and without a stored prefix; both must end with the same bits."""

    def both(net, **settings):
        stored, whole, said = runs.pair(tmp_path, net, **{"module": "sly_nets"} | settings)
        runs.assert_equal_weights(stored, whole)
        return stored, whole, said

    return both


@pytest.fixture
def texts(tmp_path):
    """A folder of texts of two kinds, of very different lengths."""
    words = ["the", "match", "was", "won", "by", "a", "late", "goal", "while", "shares", "fell"]
    draw = torch.Generator().manual_seed(0)
    for number in range(40):
        label = ("sport", "business")[number % 2]
        length = int(torch.randint(3, 90, (), generator=draw))
        chosen = torch.randint(len(words), (length,), generator=draw)
        folder = tmp_path / "texts" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(" ".join(words[n] for n in chosen))
    return tmp_path / "texts"
