"""The code of other libraries that docs print runs, where the library is installed."""

import re

import pytest
from data_of_pages import PAGES
from recipe_basics import text_network
from transformers import AutoModelForSequenceClassification

NEEDS = {
    ("from/trainer.md", 0): ["transformers", "accelerate"],
    ("from/lightning.md", 0): ["lightning"],
    ("from/lightning.md", 1): ["finetuning_scheduler"],
    ("from/frameworks.md", 0): ["keras"],
    ("from/frameworks.md", 1): ["fastai"],
    ("from/frameworks.md", 2): ["ludwig"],
}
"""What each block needs that the extra `dev` does not bring. These were run once in environments of
their own; docs/from/index.md has their releases."""
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page, number):
    return BLOCK.findall(PAGES[page].read_text("utf-8"))[number]


def for_torch():
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


RUN = {("from/torch.md", 0), ("export.md", 0)}
"""Blocks whose libraries the extra `dev` brings."""


def test_every_block_of_code_of_another_library_is_listed():
    pages = [page for page in PAGES if page.startswith("from/")] + ["export.md"]
    found = {
        (page, n) for page in pages for n in range(len(BLOCK.findall(PAGES[page].read_text())))
    }
    assert found == RUN | set(NEEDS)


@pytest.mark.slow
def test_the_loop_of_torch_trains_the_head_and_leaves_the_encoder():
    names = for_torch()
    encoder, head = ([p.clone() for p in part.state_dict().values()] for part in names["model"])
    exec(code_of("from/torch.md", 0), names)
    after = [list(part.state_dict().values()) for part in names["model"]]
    assert all(one.equal(two) for one, two in zip(encoder, after[0], strict=True))
    assert not any(one.equal(two) for one, two in zip(head, after[1], strict=True))


@pytest.mark.slow
def test_the_pipeline_of_transformers_labels_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for_pipeline(tmp_path)
    first, call = code_of("export.md", 0).strip().splitlines()
    names = {}
    exec(first, names)
    (said,) = eval(call, names)
    assert said["label"] in {"LABEL_0", "LABEL_1"}
    assert 0.5 <= said["score"] <= 1
