"""`output: logits` gives the head that the task needs."""

import json

import pytest
import torch

from finetune.predict import load_predictor
from finetune.train.build import build_parts
from finetune.train.wire import build_trainer

WORDS = [
    (["the", "good", "film"], ["O", "B-x", "O"]),
    (["bad"], ["B-x"]),
    (["yes", "no"], ["O", "O"]),
]


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of words with tags and a label, and a network with a head alone."""
    rows = [{"words": w, "tags": t, "label": "ab"[len(w) % 2]} for w, t in WORDS * 4]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(task, target, **sections):
        layer = {"name": "net", "type": "transformers", "path": bert, "output": "logits"}
        source = {"type": "jsonl", "path": str(tmp_path / "data.jsonl")}
        return small_config(
            model={"layers": [layer]},
            data={"source": source, "inputs": ["words"], "target": target},
            task={"type": task},
            **sections,
        )

    return make


def test_each_word_gets_the_head_for_tokens_and_it_is_trained_and_read_back(config, tmp_path):
    parts = config("token_classification", "tags", freeze=["net.bert"])
    trainer = build_trainer(parts, tmp_path / "run")
    assert type(trainer.model.net).__name__ == "BertForTokenClassification"
    before = trainer.model.net.classifier.weight.detach().clone()
    trainer.fit()
    assert not torch.equal(trainer.model.net.classifier.weight, before)
    (record,) = load_predictor(tmp_path / "run")([{"words": ["good", "film"]}])
    assert record


def test_a_whole_text_gets_the_head_for_texts(tmp_path, small_config, bert):
    rows = "\n".join(f"{text},{label}" for text, label in [("good", "a"), ("bad", "b")] * 4)
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}\n")
    layer = {"name": "net", "type": "transformers", "path": bert, "output": "logits"}
    source = {"type": "csv", "path": str(tmp_path / "data.csv")}
    config = small_config(
        model={"layers": [layer]},
        data={"source": source, "inputs": ["text"], "target": "label"},
        task={"type": "classification"},
    )
    assert type(build_parts(config).model.net).__name__ == "BertForSequenceClassification"
