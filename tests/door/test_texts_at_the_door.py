"""Two texts are a pair, no column replaces another unseen, and what is cut off is counted."""

import csv

import pytest
import torch
from transformers import AutoTokenizer, ByT5Tokenizer

from finetune.cli.plans import preview, preview_as_data
from finetune.data.incoming.prepare_inputs import prepare_inputs
from finetune.data.steps.loaded_tokenizer import load_tokenizer
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.table import Listed
from finetune.errors import ConfigError, DataError, ModelError
from finetune.models.preprocessing import Preprocessing
from finetune.predict import load_predictor
from finetune.train.before.every_part import try_parts
from finetune.train.build import build_parts
from finetune.train.precision import Precision
from finetune.train.run_data import open_samples
from finetune.train.wire import build_trainer

TOKENIZE = {"type": "tokenize"}


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of a csv file with the given columns and a label."""

    def make(columns, **data):
        rows = zip(*columns.values(), strict=True)
        with (tmp_path / "data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "label"])
            writer.writerows([*row, "ab"[number % 2]] for number, row in enumerate(rows))
        layers = [
            {"name": "encoder", "type": "transformers", "path": bert, "output": "mean"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
        source = {"type": "csv", "path": str(tmp_path / "data.csv")}
        return small_config(
            model={"layers": layers},
            data={"source": source, "inputs": list(columns), "target": "label", **data},
            task={"type": "classification"},
        )

    return make


PAIRS = {"premise": ["the good film", "the film"], "hypothesis": ["yes", "no no"]}


def encoded(bert, *texts, max_length=128):
    return AutoTokenizer.from_pretrained(bert)(*texts, truncation=True, max_length=max_length)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"transforms": [TOKENIZE]},
        {"transforms": [TOKENIZE | {"columns": ["premise", "hypothesis"]}]},
    ],
    ids=["inputs alone", "tokenize", "named"],
)
def test_two_texts_are_encoded_as_the_tokenizer_encodes_pairs(config, bert, data):
    samples = open_samples(config(PAIRS, **data)).train
    batch = samples.fetch(torch.tensor([0]))
    expected = encoded(bert, "the good film", "yes")
    assert {name: values[0].tolist() for name, values in batch.inputs.items()} == dict(expected)
    assert 1 in batch.inputs["token_type_ids"]


def test_a_pair_of_one_sample_is_encoded_as_those_of_whole_columns_are(bert):
    step = Tokenize(("a", "b"), 32, pad_to_max=False, tokenizer=load_tokenizer(bert, ()), key=())
    one = step({"a": "good film", "b": "the bad"})
    columns = {"a": Listed(["good film"], "text"), "b": Listed(["the bad"], "text")}
    whole = step.whole(columns, None)
    assert one.keys() == whole.keys() > {"token_type_ids"}
    assert all(torch.equal(one[name].values, whole[name][0].values) for name in one)


def test_the_order_of_a_pair_is_that_of_its_columns(config, bert):
    tokenize = TOKENIZE | {"columns": ["hypothesis", "premise"]}
    batch = open_samples(config(PAIRS, transforms=[tokenize])).train.fetch(torch.tensor([0]))
    assert batch.inputs["input_ids"][0].tolist() == encoded(bert, "yes", "the good film").input_ids


@pytest.mark.parametrize("data", [{}, {"transforms": [TOKENIZE | {"columns": list(PAIRS)}]}])
def test_prediction_encodes_the_pair_of_texts(config, bert, data):
    whole = config(PAIRS, **data)
    prepared = open_samples(whole)
    samples = prepare_inputs(
        {"premise": ["the film"], "hypothesis": ["no no"]},
        whole.data,
        prepared.facts,
        Preprocessing(bert, None),
        trust=(),
    )
    ids = samples.fetch(torch.tensor([0])).inputs["input_ids"][0].tolist()
    assert ids == encoded(bert, "the film", "no no").input_ids


def test_a_run_on_pairs_is_read_back_and_hears_the_second_text(tmp_path, config):
    build_trainer(config(PAIRS), tmp_path / "run").fit()
    predictor = load_predictor(tmp_path / "run")
    yes, no = predictor(
        [
            {"premise": "the film", "hypothesis": "yes"},
            {"premise": "the film", "hypothesis": "no no"},
        ]
    )
    assert yes.values != no.values


def test_pairs_are_stored_as_they_are_made(config, bert, monkeypatch, tmp_path):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("finetune.data.steps.tokens._LEAST_CHARACTERS", 1)
    columns = {"a": ["the good film"] * 6, "b": [" ".join(["no"] * n) for n in range(1, 7)]}
    made = config(columns, split={"test": 0.5}, transforms=[TOKENIZE | {"max_length": 8}])
    stored = made.model_copy(update={"cache": made.cache.model_copy(update={"use": "auto"})})
    first, again, without = map(open_samples, (stored, stored, made))
    assert list((tmp_path / "cache").iterdir())
    for part in ("train", "test"):
        prints = {getattr(each, part).fingerprint() for each in (first, again, without)}
        assert len(prints) == 1
    assert first.notes == again.notes == without.notes
    assert "4 of 6 pairs of 'a', 'b' are cut to max_length 8" in first.notes[0]


@pytest.mark.parametrize(
    ("columns", "transforms", "message"),
    [
        (
            PAIRS,
            [TOKENIZE | {"column": "premise"}, TOKENIZE | {"column": "hypothesis"}],
            "tokenize of 'hypothesis' gives 'input_ids', which would replace 'input_ids', "
            "given by tokenize of 'premise'",
        ),
        (
            {"a": [1, 2], "b": [3, 4], "c": [5, 6], "d": [7, 8]},
            [{"type": "stack", "columns": ["a", "b"]}, {"type": "stack", "columns": ["c", "d"]}],
            "stack of 'c', 'd' gives 'features', which would replace 'features', "
            "given by stack of 'a', 'b'",
        ),
        (
            {"features": [1, 2], "b": [3, 4]},
            [{"type": "stack", "columns": ["b"]}],
            "stack of 'b' gives 'features', which would replace 'features', an input",
        ),
        (
            {"text": ["yes", "no"], "attention_mask": [1, 2]},
            None,
            "tokenize of 'text' gives 'attention_mask', which would replace 'attention_mask', "
            "an input",
        ),
    ],
    ids=["two tokenized", "two stacked", "an input", "without transforms"],
)
def test_a_step_that_would_replace_a_column_in_use_names_both(config, columns, transforms, message):
    data = {} if transforms is None else {"transforms": transforms}
    with pytest.raises(DataError) as told:
        open_samples(config(columns, **data))
    assert told.value.message == message
    assert told.value.hint


def test_a_stack_may_take_the_name_of_a_column_that_it_takes(config):
    columns = {"features": [1, 2], "b": [3, 4]}
    samples = open_samples(config(columns, transforms=[{"type": "stack"}])).train
    assert samples.fetch(torch.tensor([0])).inputs["features"].tolist() == [[1, 3]]


def test_three_texts_are_refused_with_the_key_that_names_two(config):
    with pytest.raises(DataError, match="3 columns hold text, 'a', 'b', 'c'") as told:
        open_samples(config({name: ["yes", "no"] for name in "abc"}))
    assert "{type: tokenize, columns: [a, b]}" in told.value.hint


@pytest.mark.parametrize(
    "node",
    [
        {"column": "premise", "columns": ["premise", "hypothesis"]},
        {"columns": ["premise", "premise"]},
    ],
)
def test_a_pair_is_named_in_one_way_and_of_two_columns(config, node):
    with pytest.raises((ConfigError, ValueError), match=r"exclude each other|no pair with itself"):
        config(PAIRS, transforms=[TOKENIZE | node])


def test_texts_that_are_cut_are_counted_with_their_tokens(config):
    texts = ["the film " * 20, "yes", "no " * 12, "the good film"]
    made = config({"text": texts}, split={"test": 0.5}, transforms=[TOKENIZE | {"max_length": 8}])
    (note,) = open_samples(made).notes
    # 42 + 3 + 14 + 5 tokens, of which 34 + 6 are cut
    assert note.startswith(
        "2 of 4 texts of 'text' are cut to max_length 8: 62.5% of all tokens are lost, the "
        "longest has 42; "
    )
    shown = preview_as_data(preview(made))["notes"]
    assert note in shown


def test_a_pair_that_is_cut_on_both_sides_counts_each_token_once(config):
    made = config({"a": ["yes " * 30] * 2, "b": ["no " * 25] * 2}, transforms=[
        TOKENIZE | {"max_length": 11}
    ])  # fmt: skip
    (note,) = open_samples(made).notes
    # 30 + 25 + 3 tokens each, of which 11 are kept
    assert f"cut to max_length 11: {47 / 58:.1%} of all tokens are lost, the longest has 58" in note


def test_the_longest_of_many_texts_is_tried_without_measuring_all_at_once(config, monkeypatch):
    parts = build_parts(config({"text": [*["the film"] * 290, "no " * 9, "yes"]}))
    samples, measured, widths = parts.data.train, [], []
    lengths = type(samples).lengths

    def noted(self, indices):
        measured.append(len(indices))
        return lengths(self, indices)

    monkeypatch.setattr(type(samples), "lengths", noted)
    parts.model.register_forward_pre_hook(
        lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    precision = Precision(parts.training.precision, parts.device)
    try_parts(parts.model, parts.task, {"train": samples}, precision=precision, batch_size=1)
    assert max(widths) == 11
    assert sum(measured) == 292 > max(measured)


@pytest.mark.parametrize("columns", [("text",), ("text", "other")], ids=["texts", "pairs"])
def test_texts_that_a_tokenizer_written_in_python_cuts_are_counted_too(columns):
    step = Tokenize(columns, 8, False, ByT5Tokenizer(), ())
    texts = Listed(["a" * 30, "bb", "c" * 7], "text")
    given = {"text": texts, "other": Listed(["", "d", ""], "text")}
    made = step.whole({name: given[name] for name in columns})
    assert made["input_ids"].lengths.tolist() == [8, 3 + 2 * (len(columns) - 1), 8]
    # One token a byte, and one that ends each text of a pair
    whole = {1: 31 + 3 + 8, 2: 32 + 5 + 9}[len(columns)]
    num_cut = len(columns)
    assert (step.cut.num_cut, step.cut.tokens) == (num_cut, whole)
    assert step.cut.longest == 30 + len(columns)


EMPTY = {
    "empty": (["yes", "", "no", ""], 2),
    "blank": (["yes", "  ", "no", "\t"], 2),
    "one": (["yes", "no", "", "good"], 1),
}


@pytest.mark.parametrize("case", EMPTY)
def test_texts_without_a_token_are_counted(config, case):
    texts, count = EMPTY[case]
    made = config({"text": texts}, split={"test": 0.5}, transforms=[TOKENIZE])
    (note,) = open_samples(made).notes
    assert note == f"{count} of 4 texts of 'text' have no token: they are empty, or blank"


def test_only_pairs_of_two_empty_texts_have_no_token(config):
    made = config({"a": ["", "", "yes"], "b": ["", "no", ""]}, transforms=[TOKENIZE])
    (note,) = open_samples(made).notes
    assert note == "1 of 3 pairs of 'a', 'b' have no token: they are empty, or blank"


def test_many_unknown_tokens_are_told(config):
    made = config({"text": ["GOOD film", "bad FILM", "THE good", "the"]}, transforms=[TOKENIZE])
    (note,) = open_samples(made).notes
    assert note == (
        "42.9% of the tokens of 4 texts of 'text' are unknown to the tokenizer, to which all of "
        "them are alike: is it for this language, and for letters of this case?"
    )
    some = config({"text": ["good bad film the yes no Anna"] * 4}, transforms=[TOKENIZE])
    assert open_samples(some).notes == ()


def test_texts_that_fit_are_not_told(config):
    made = config({"text": ["yes " * 6, "no"]}, transforms=[TOKENIZE | {"max_length": 8}])
    assert open_samples(made).notes == ()


@pytest.mark.parametrize("long_row", [0, 9], ids=["in the first batch", "in the last one"])
def test_more_tokens_than_the_network_has_positions_for_are_told_with_the_remedy(
    config, tmp_path, long_row
):
    texts = ["good film"] * 10
    texts[long_row] = "good " * 80
    built = config({"text": texts}, transforms=[TOKENIZE | {"max_length": 100}])
    with pytest.raises(ModelError, match="has positions for 64 tokens, a sample has 82") as caught:
        build_trainer(built, tmp_path / "run").fit(quiet=True)
    assert "max_length: 64" in caught.value.hint
    assert "size of tensor" not in str(caught.value)


def test_a_new_text_longer_than_the_network_has_positions_for_names_the_remedy(config, tmp_path):
    built = config({"text": ["good film"] * 10}, transforms=[TOKENIZE | {"max_length": 100}])
    build_trainer(built, tmp_path / "run").fit(quiet=True)
    with pytest.raises(
        ModelError, match=r"layer 'encoder' .*has positions for 64 tokens"
    ) as caught:
        load_predictor(tmp_path / "run")(["film", "good " * 80])
    assert "max_length: 64" in caught.value.hint
