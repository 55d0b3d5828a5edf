"""Words and their tags, in the forms that files have them: read, aligned with tokens, predicted."""

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from finetune import build_trainer, load_predictor
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.sources import large_tables
from finetune.data.steps import tokenizing
from finetune.data.table import Listed
from finetune.data.targets.words import needs_blank, words_of
from finetune.errors import DataError
from finetune.runs.folder import RunFolder
from finetune.train.after.trained import evaluate_run

NAMES = ["ann", "bob", "carol"]
PLACES = ["new york", "oslo"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a tiny network and a tokenizer of word pieces: each letter may be a token."""
    folder = tmp_path_factory.mktemp("bert")
    whole = ["lives", "in", "calls", *NAMES, "york"]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *LETTERS,
        *(f"##{one}" for one in LETTERS),
        *whole,
    ]
    made = Tokenizer(models.WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=made, sep_token="[SEP]", **special,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(pieces), **sizes)).save_pretrained(folder)
    return str(folder)


def drawn(count=24, seed=0):
    """Sentences as words with tags."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        place = draw.choice(PLACES).split()
        words = [draw.choice(NAMES), "lives", "in", *place]
        tags = ["B-per", "O", "O", "B-loc", *["I-loc"] * (len(place) - 1)]
        if draw.random() < 0.4:
            words, tags = [*words, "calls", draw.choice(NAMES)], [*tags, "O", "B-per"]
        rows.append((words, tags))
    return rows


def written(path, form, rows):
    """Write rows to a file in one of the forms that files have them."""
    match form:
        case "lists in csv" | "texts in csv":
            joined = json.dumps if form == "lists in csv" else " ".join
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["words", "tags"])
                writer.writerows([joined(words), joined(tags)] for words, tags in rows)
        case "repr in csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["words", "tags"])
                writer.writerows([repr(words), repr(tags)] for words, tags in rows)
        case "jsonl":
            lines = (json.dumps({"words": words, "tags": tags}) for words, tags in rows)
            path.write_text("\n".join(lines))
        case "text and list in jsonl":
            lines = (json.dumps({"words": " ".join(w), "tags": tags}) for w, tags in rows)
            path.write_text("\n".join(lines))
        case "parquet":
            pq.write_table(
                pa.table({"words": [w for w, _ in rows], "tags": [t for _, t in rows]}), path
            )
    return path


ENDINGS = {
    "lists in csv": "csv",
    "texts in csv": "csv",
    "repr in csv": "csv",
    "jsonl": "jsonl",
    "text and list in jsonl": "jsonl",
    "parquet": "parquet",
}
TYPES = {"csv": "csv", "jsonl": "jsonl", "parquet": "parquet"}


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of a file with words and tags; only the head is trained."""

    def make(form="jsonl", rows=None, max_length=32, **changes):
        ending = ENDINGS[form]
        path = written(tmp_path / f"data.{ending}", form, rows or drawn())
        layers = [
            {"name": "encoder", "type": "transformers", "path": bert, "output": "hidden"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
        sections = {
            "model": {"layers": layers},
            "data": {
                "source": {"type": TYPES[ending], "path": str(path)},
                "split": {"validation": 0.25, "copies": "leave"},
                "inputs": ["words"],
                "target": "tags",
                "transforms": [{"type": "tokenize", "max_length": max_length}],
            },
            "task": {"type": "token_classification"},
            "freeze": ["encoder"],
            "optimizer": {"type": "AdamW", "lr": 0.05},
            "train": {"steps": 12, "batch_size": 8, "evaluate_every": {"steps": 6}},
        }
        return small_config(**sections | changes)

    return make


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def trained(config, folder, heard=None):
    trainer = build_trainer(config, folder, tracker=heard)
    trainer.fit(quiet=True)
    return trainer


@pytest.mark.parametrize("form", [*ENDINGS])
def test_every_form_of_words_and_tags_gives_the_targets_of_run_ner(config, bert, tmp_path, form):
    rows = drawn()
    samples = build_trainer(config(form, rows), tmp_path / "run").splits.train
    batch = samples.fetch(torch.arange(len(samples)))
    tokenizer, classes = AutoTokenizer.from_pretrained(bert), ["B-loc", "B-per", "I-loc", "O"]
    known = {}
    for words, tags in rows:
        # As in `run_ner.py` of transformers: the first token of a word has its tag.
        encoded = tokenizer(words, is_split_into_words=True)
        ids, before, expected = encoded.word_ids(), None, []
        for word in ids:
            new = word is not None and word != before
            expected.append(classes.index(tags[word]) if new else -100)
            before = word
        known[tuple(encoded["input_ids"])] = expected
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    for ids, target, length in zip(batch.inputs["input_ids"], batch.target, lengths, strict=True):
        assert target[:length].tolist() == known[tuple(ids[:length].tolist())]
        assert set(target[length:].tolist()) <= {-100}


@pytest.mark.slow
def test_a_run_learns_tags_keeps_the_frozen_part_and_predicts_spans(config, tmp_path, call):
    made = config(train={"steps": 60, "batch_size": 8, "evaluate_every": {"steps": 30}})
    trained(made, tmp_path / "run")
    summary = RunFolder.of(tmp_path / "run", made).read_json("summary.json")
    assert summary["proof_intact"]
    assert summary["metrics"]["validation/f1"] > 0.9
    (tmp_path / "new.txt").write_text("bob  lives in new york")
    shown = json.loads(call("predict", tmp_path / "run", tmp_path / "new.txt").out)
    spans = [(one["text"], one["label"], one["start"], one["end"]) for one in shown["spans"]]
    assert spans == [("bob", "per", 0, 3), ("new york", "loc", 14, 22)]
    predictor = load_predictor(tmp_path / "run")
    one, other = predictor([["bob", "lives", "in", "oslo"], "bob lives in oslo"])
    assert one.tags == other.tags == ("B-per", "O", "O", "B-loc")
    assert [(span.start, span.end) for span in one.spans] == [(0, 1), (3, 4)]


def test_predictions_in_csv_have_spans_as_json(config, tmp_path, call):
    trained(config(), tmp_path / "run")
    call("predict", tmp_path / "run", tmp_path / "data.jsonl", "--out", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert all(isinstance(json.loads(row["spans"]), list) for row in rows)
    assert rows[0]["tags"].count("|") == len(drawn()[0][0]) - 1


def test_an_evaluation_of_a_file_gives_the_figures_of_its_rows(config, tmp_path, call):
    trained(config(), tmp_path / "run")
    seen = []
    for form in ("texts in csv", "lists in csv", "jsonl"):
        path = written(tmp_path / f"more.{ENDINGS[form]}", form, drawn(9, seed=3))
        figures = json.loads(call("eval", tmp_path / "run", path, "--json").out)["metrics"]
        assert figures.keys() == {"loss", "f1", "accuracy"}
        seen.append(figures)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.slow
def test_a_cached_run_ends_with_the_bits_of_one_without_cache(config, tmp_path, always):
    rows, train = drawn(300), {"epochs": 4, "batch_size": 8}
    plain = trained(config(rows=rows, train=train), tmp_path / "plain")
    cached = trained(config(rows=rows, train=train, cache="auto"), tmp_path / "cached")
    expected, found = weights_of(plain), weights_of(cached)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    ends = [
        RunFolder.of(tmp_path / name, config()).read_json("summary.json")
        for name in ("plain", "cached")
    ]
    assert ends[0]["metrics"] == ends[1]["metrics"]
    assert ends[1]["activation_cache"]["answered"] > 0


def test_micro_batches_change_the_weights_by_rounding_alone(config, tmp_path):
    ends = []
    for size in (1, 3, 8):
        steps = {"steps": 4, "batch_size": 8, "micro_batch": size}
        ends.append(weights_of(trained(config(train=steps), tmp_path / f"run {size}")))
    for one in ends[:-1]:
        for name, value in one.items():
            torch.testing.assert_close(value, ends[-1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["texts in csv", "text and list in jsonl"])
def test_tags_of_a_large_table_are_aligned_as_its_tokens_are_made(
    config, tmp_path, monkeypatch, form
):
    monkeypatch.setattr(tokenizing, "_MOST_AT_ONCE", 10)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    ends = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(large_tables, "LEAST_BYTES", least)
        made = config(form, drawn(60))
        ends.append(weights_of(trained(made, tmp_path / f"run {least}")))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_such_a_table_is_read_lazily(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "_MOST_AT_ONCE", 10)
    monkeypatch.setattr(large_tables, "LEAST_BYTES", 0)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    train = build_trainer(config("texts in csv", drawn(60)), tmp_path / "run").splits.train
    assert isinstance(train._target.words, LazyColumn)


def test_words_beyond_max_length_are_counted_and_told(config, tmp_path, heard):
    build_trainer(config(max_length=5), tmp_path / "run", tracker=heard)
    told = [line for line in heard.said if "have no token" in line]
    assert len(told) == 2
    assert "train words of 'words' have no token, as those beyond max_length" in told[0]


@pytest.mark.parametrize("form", ["jsonl", "texts in csv"])
def test_a_row_with_more_words_than_tags_is_named_with_file_and_counts(config, tmp_path, form):
    rows = drawn()
    rows[4] = (["ann", "lives"], ["O"])
    rows[7] = (["ann"], ["O", "O"])
    with pytest.raises(DataError) as error:
        build_trainer(config(form, rows), tmp_path / "run")
    line = str(error.value).splitlines()[0]
    assert "column 'words' has 2 words and 'tags' has 1 tags in " in line
    assert f"data.{ENDINGS[form]}" in line
    assert line.endswith("and 1 more row")


def test_words_that_are_no_texts_are_named_with_their_row(config, tmp_path):
    rows = drawn()
    rows[2] = (["ann", 7], ["O", "O"])
    with pytest.raises(
        DataError, match=r"holds \['ann', 7\] in .*neither a text nor a list of words"
    ):
        build_trainer(config("jsonl", rows), tmp_path / "run")


def test_a_tag_that_training_never_had_is_named(config, tmp_path):
    trained(config(), tmp_path / "run")
    path = written(tmp_path / "more.jsonl", "jsonl", [(["ann", "calls"], ["B-org", "O"])])
    with pytest.raises(DataError, match=r"label 'B-org' of .* is never seen in training"):
        evaluate_run(tmp_path / "run", source=str(path))


def test_tags_without_a_step_that_tokenizes_are_refused(small_config, tmp_path):
    path = written(tmp_path / "d.jsonl", "jsonl", drawn())
    made = small_config(
        data={
            "source": {"type": "jsonl", "path": str(path)}, "inputs": ["words"], "target": "tags",
        },
        task={"type": "token_classification"},
    )  # fmt: skip
    with pytest.raises(DataError, match="'words' have tags, and no step makes tokens of them"):
        build_trainer(made, tmp_path / "run")


def test_tags_that_are_whole_numbers_are_classes_by_value(config, tmp_path):
    rows = [(words, [len(word) for word in words]) for words, _ in drawn()]
    made = config("jsonl", rows, task={"type": "token_classification", "metrics": ["accuracy"]})
    trainer = trained(made, tmp_path / "run")
    facts = RunFolder.of(tmp_path / "run", made).read_json("data.json")
    assert facts["classes"] == ["2", "3", "4", "5"]
    assert trainer.progress.step == 12


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("Ann  Lee", ["Ann", "Lee"]),
        (["Ann", "Lee"], ["Ann", "Lee"]),
        ('["Ann", "Lee"]', ["Ann", "Lee"]),
        ("['Ann' 'Lee']", ["Ann", "Lee"]),
        ("[1]", ["[1]"]),
        ("[sic] Ann", ["[sic]", "Ann"]),
        ("(Ann)", ["(Ann)"]),
        ("[]", []),
        ("", []),
        (7, None),
        ([["Ann"]], None),
    ],
    ids=repr,
)
def test_words_of_a_cell(cell, words):
    assert words_of(cell) == words


@pytest.mark.parametrize("puts_blank", [False, True])
def test_words_are_tokenized_as_behind_a_blank_by_tokenizers_of_bytes(puts_blank):
    """As of GPT-2 and RoBERTa, to which a word that begins a text is another one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {"<pad>": len(letters), "Ġa": len(letters) + 1}
    made = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=puts_blank)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    assert needs_blank(tokenizer) is not puts_blank
    step = tokenizing.Tokenize(("t",), 8, False, tokenizer, ())
    columns = step.whole({"t": Listed([["a", "ab"]], "words")})
    assert columns["input_ids"][0].values.tolist() == [
        vocabulary["Ġa"], vocabulary["Ġa"], vocabulary["b"],
    ]  # fmt: skip
    assert columns["word numbers"][0].values.tolist() == [0, 1, -1]
