"""The code of other libraries that docs print runs, where the library is installed."""

import importlib.util
import re

import pytest
from data_of_pages import PAGES
from recipe_basics import text_network
from transformers import AutoModelForSequenceClassification

NEEDS = {
    ("from/torch.md", 0): ["torch"],
    ("from/trainer.md", 0): ["transformers", "accelerate"],
    ("from/lightning.md", 0): ["lightning"],
    ("from/lightning.md", 1): ["finetuning_scheduler"],
    ("from/frameworks.md", 0): ["keras"],
    ("from/frameworks.md", 1): ["fastai"],
    ("from/frameworks.md", 2): ["ludwig"],
    ("export.md", 0): ["transformers"],
}
"""Libraries that each block of text needs. Those that the environment of the tests lacks were run
once in environments of their own; docs/from/index.md has their releases."""
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page, number):
    return BLOCK.findall(PAGES[page].read_text("utf-8"))[number]


def for_torch(folder):
    import torch
    from torch import nn
    from torch.nn import functional

    model = nn.Sequential()
    model.add_module("encoder", nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)))
    model.add_module("head", nn.Linear(4, 2))
    loader = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(2)]
    return {"torch": torch, "F": functional, "model": model, "loader": loader}


def for_pipeline(folder):
    (folder / "exported").mkdir()
    network = AutoModelForSequenceClassification.from_pretrained(text_network(folder / "network"))
    network.save_pretrained(folder / "exported" / "topics")
    for file in (folder / "network").glob("tokenizer*"):
        (folder / "exported" / "topics" / file.name).write_bytes(file.read_bytes())
    return {}


MAKERS = {("from/torch.md", 0): for_torch, ("export.md", 0): for_pipeline}
"""What the code of a block begins with."""


def test_every_block_of_code_of_another_library_is_listed():
    pages = [page for page in PAGES if page.startswith("from/")] + ["export.md"]
    found = {
        (page, n) for page in pages for n in range(len(BLOCK.findall(PAGES[page].read_text())))
    }
    assert found == set(NEEDS)
    lacking = {
        block for block, names in NEEDS.items() if not all(map(importlib.util.find_spec, names))
    }
    assert set(NEEDS) - set(MAKERS) <= lacking, "what is installed is run"


@pytest.mark.slow
@pytest.mark.parametrize("block", MAKERS, ids=lambda block: block[0])
def test_the_code_of_another_library_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = MAKERS[block](tmp_path)
    before = [p.clone() for p in found["model"].encoder.state_dict().values()] if found else []
    exec(compile(code_of(*block), block[0], "exec"), found)
    if found.get("model"):
        after = found["model"].encoder.state_dict().values()
        assert all(map(lambda one, two: one.equal(two), before, after))
