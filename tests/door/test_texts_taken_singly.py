"""Two texts that layers name are tokenized each by itself; all others are a pair."""

import csv
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from finetune.cli.plans import preview, preview_as_data
from finetune.config.model import ModelConfig
from finetune.errors import DataError, FinetuneError, ModelError
from finetune.predict import load_predictor
from finetune.preview.inspection import inspect_batch
from finetune.train.build import build_parts
from finetune.train.run_data import open_samples
from finetune.train.wire import build_trainer

PAIRS = {
    "premise": ["the good film", "the film", "good", "the bad bad film no"],
    "hypothesis": ["yes", "no no", "the film yes", "no"],
}
TOKENIZE = {"type": "tokenize"}
OUTPUTS = ("input_ids", "token_type_ids", "attention_mask")
EACH = [f"{text}.{output}" for text in PAIRS for output in OUTPUTS]


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of two texts and a label, with one encoder for both."""

    def make(second=None, columns=PAIRS, **sections):
        rows = [*zip(*columns.values(), strict=True)] * 3
        with (tmp_path / "data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "label"])
            writer.writerows([*row, "ab"[number % 2]] for number, row in enumerate(rows))
        one = {"name": "one", "type": "transformers", "path": bert, "inputs": ["premise"]}
        shared = {"name": "two", "type": "shared", "layer": "one", "inputs": ["hypothesis"]}
        layers = [
            one,
            second or shared,
            {"name": "both", "type": "concat", "inputs": ["one", "two"]},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
        source = {"type": "csv", "path": str(tmp_path / "data.csv")}
        data = {"source": source, "inputs": list(columns), "target": "label"}
        return small_config(
            model={"layers": layers},
            data=data | sections.pop("data", {}),
            task={"type": "classification"},
            **sections,
        )

    return make


@pytest.mark.parametrize(
    "transforms",
    [
        None,
        [TOKENIZE],
        [TOKENIZE | {"column": "premise"}, TOKENIZE | {"column": "hypothesis"}],
    ],
    ids=["inputs alone", "tokenize", "named"],
)
def test_each_text_is_encoded_as_the_tokenizer_encodes_it_alone(config, bert, transforms):
    samples = open_samples(config(data={"transforms": transforms})).train
    assert list(samples.inputs) == EACH
    batch = samples.fetch(torch.tensor([1]))
    tokenizer = AutoTokenizer.from_pretrained(bert)
    for text, words in (("premise", "the film"), ("hypothesis", "no no")):
        for name, values in tokenizer(words).items():
            assert batch.inputs[f"{text}.{name}"][0].tolist() == values


def test_a_layer_that_has_the_name_of_a_text_leaves_the_texts_a_pair(config, small_config, bert):
    data = config().data
    encoder = {"name": "premise", "type": "transformers", "path": bert, "output": "cls"}
    head = {"type": "Linear", "out_features": "classes", "inputs": ["premise"]}
    pair = small_config(
        model={"layers": [encoder, head]}, data=data, task={"type": "classification"}
    )
    assert list(build_parts(pair).data.train.inputs) == [*OUTPUTS]


def test_each_text_has_settings_of_its_own(config):
    short = TOKENIZE | {"column": "premise", "max_length": 4}
    samples = open_samples(config(data={"transforms": [short, TOKENIZE]})).train
    assert samples.specs["premise.input_ids"].shape == (4,)
    assert samples.specs["hypothesis.input_ids"].shape == (5,)


def test_two_encoders_of_their_own_read_a_text_each(config, bert):
    second = {"name": "two", "type": "transformers", "path": bert, "inputs": ["hypothesis"]}
    parts = build_parts(config(second))
    names = [name for name, _ in parts.model.named_parameters()]
    assert sum(name.startswith("two.") for name in names) == sum(
        n.startswith("one.") for n in names
    )


def test_each_text_has_the_tokenizer_of_the_network_that_takes_it(config, bert, tmp_path):
    shutil.copytree(bert, tmp_path / "other")
    rules = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words = rules["model"]["vocab"]
    words["yes"], words["no"] = words["no"], words["yes"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(rules))
    path = str(tmp_path / "other")
    second = {"name": "two", "type": "transformers", "path": path, "inputs": ["hypothesis"]}
    batch = open_samples(config(second)).train.fetch(torch.tensor([0]))
    expected = AutoTokenizer.from_pretrained(path)("yes").input_ids
    assert batch.inputs["hypothesis.input_ids"][0].tolist() == expected
    assert expected != AutoTokenizer.from_pretrained(bert)("yes").input_ids


def test_a_run_on_two_texts_is_read_back_and_predicts_what_its_network_says(tmp_path, config):
    trainer = build_trainer(config(train={"epochs": 1, "batch_size": 4}), tmp_path / "run")
    trainer.fit()
    predictor = load_predictor(tmp_path / "run")
    samples = [
        {"premise": "the film", "hypothesis": "yes"},
        {"premise": "yes", "hypothesis": "the"},
    ]
    one, other = predictor(samples)
    assert one.values != other.values
    swapped = [{"premise": row["hypothesis"], "hypothesis": row["premise"]} for row in samples]
    assert predictor(swapped)[0].values != one.values


@pytest.mark.slow
def test_plan_inspect_and_sizes_count_the_encoder_once(config, bert):
    both = config(freeze=["one.embeddings"])
    second = {"name": "two", "type": "transformers", "path": bert, "inputs": ["hypothesis"]}
    plan, apart = preview_as_data(preview(both)), preview_as_data(preview(config(second)))
    assert '"two' not in json.dumps(plan["phases"])
    # As many operations as two encoders, with the parameters of one.
    assert (
        plan["full_training"]["costs"]["flops_per_step"]
        == apart["full_training"]["costs"]["flops_per_step"]
    )
    assert (
        plan["full_training"]["costs"]["weights_bytes"]
        < apart["full_training"]["costs"]["weights_bytes"]
    )
    inspection = inspect_batch(build_parts(both), samples=4, activations=True)
    calls = [call.module for call in inspection.calls]
    assert calls.count("one.embeddings.word_embeddings") == 2
    assert len({leaf.name for leaf in inspection.leaves}) == len(inspection.leaves)


def test_what_is_frozen_in_a_shared_encoder_is_proven(tmp_path, config):
    trainer = build_trainer(config(freeze=["one"]), tmp_path / "run")
    trainer.fit()
    proof = json.loads((tmp_path / "run" / "freeze_proof.json").read_text())
    assert "two" not in json.dumps(proof["phases"][0].get("digests", {}))


def test_texts_of_lengths_of_their_own_are_not_stored_and_the_reason_is_told(tmp_path, config):
    said = []
    trainer = build_trainer(config(freeze=["one"], cache="auto"), tmp_path / "run")
    trainer.reporter.tracker.message = said.append
    trainer.fit()
    (line,) = [line for line in said if "activation cache" in line]
    assert "how many tokens a sample has is not known beforehand from one column" in line


def test_a_selector_of_the_shared_name_takes_nothing_and_is_told(config):
    with pytest.raises(FinetuneError, match="'two'"):
        build_parts(config(freeze=["two"]))


def test_texts_that_no_layer_names_are_a_pair(config, bert):
    encoder = {"name": "one", "type": "transformers", "path": bert}
    head = {"name": "head", "type": "Linear", "out_features": "classes"}
    model = ModelConfig.model_validate({"layers": [encoder, head]})
    samples = open_samples(config().model_copy(update={"model": model})).train
    assert list(samples.inputs) == list(OUTPUTS)


def test_a_pair_by_its_own_step_cannot_be_taken_apart(config):
    pair = TOKENIZE | {"columns": list(PAIRS)}
    with pytest.raises(ModelError, match="no earlier layer and no input column 'premise'"):
        build_parts(config(data={"transforms": [pair]}))


def test_a_third_text_without_a_layer_is_one_clear_error(config):
    columns = PAIRS | {"remark": ["yes", "no", "good", "bad"]}
    with pytest.raises((DataError, ModelError), match="goes into no layer"):
        build_parts(config(columns=columns))
