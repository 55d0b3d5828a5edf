"""Texts of a large table are tokenized as they are needed; no batch, shape or hash tells."""

import csv
import random

import pytest
import torch
from transformers import AutoTokenizer

from finetune.config.run import RunConfig
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.loading.gathered_samples import GatheredSamples
from finetune.data.memory_budget import MemoryBudget
from finetune.data.ragged import Ragged
from finetune.data.readers.chunks import Chunk
from finetune.data.readers.mapped_file import ArrowFile
from finetune.data.sources import large_tables
from finetune.data.steps import tokenizing
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.tokens import TokenStore
from finetune.data.table import Listed
from finetune.train.wire import build_trainer

COUNT, DRAWN, LONGEST = 600, 20, 12
WORDS = ["river", "stone", "wind", "light", "paper", "cloud", "ember", "iron"]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(tokenizing, "_MOST_AT_ONCE", 100)
    monkeypatch.setattr(tokenizing, "_NUM_DRAWN", DRAWN)


def texts_of(seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 15))) for _ in range(COUNT)]


@pytest.fixture
def columns(tmp_path):
    """Two columns of texts in lists, and the same in an Arrow file."""
    lists = {"one": texts_of(1), "other": texts_of(2)}
    with (tmp_path / "t.arrow").open("w+b") as file:
        arrow = ArrowFile(file)
        for start in range(0, COUNT, 250):
            some = {name: texts[start : start + 250] for name, texts in lists.items()}
            arrow.write(Chunk(some, tuple(lists), (), len(some["one"])))
        mapped = arrow.columns()
    return tuple(
        {name: Listed(values, "text") for name, values in each.items()} for each in (lists, mapped)
    )


class CountedTokenizer:
    def __init__(self, tokenizer):
        self.tokenizer, self.count = tokenizer, 0

    def __call__(self, texts, *others, **settings):
        self.count += len(texts)
        return self.tokenizer(texts, *others, **settings)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module")
def loaded(minilm):
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture
def counted(loaded):
    return CountedTokenizer(loaded)


def step_of(tokenizer, *names):
    return Tokenize(names, LONGEST, False, tokenizer, ())


BUDGETS = {
    "none": lambda: None,
    "for all": lambda: MemoryBudget(1e9),
    "for some": lambda: MemoryBudget(150_000),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("names", [("one",), ("one", "other")], ids=["text", "pair"])
def test_batches_are_those_of_tokens_that_were_made_at_once(columns, counted, names, budget):
    lists, mapped = columns
    rows = torch.randperm(COUNT)[:500]
    eager, lazy = (
        GatheredSamples(
            step_of(counted, *names).whole(
                {name: column.take(rows) for name, column in each.items() if name in names},
                None,
                BUDGETS[budget](),
            ),
            None,
        )
        for each in (lists, mapped)
    )
    assert eager.inputs == lazy.inputs
    for batch in [*torch.randperm(500).split(32), *torch.randperm(500).split(7)]:
        for length in (None, LONGEST):
            one = eager.fetch(batch, length=length).inputs
            other = lazy.fetch(batch, length=length).inputs
            assert all(torch.equal(one[name], other[name]) for name in one)
            assert all(one[name].dtype == other[name].dtype == torch.int64 for name in one)
        assert eager.extent(batch) == lazy.extent(batch)


def test_only_texts_that_are_needed_are_tokenized_and_each_once_if_there_is_room(columns, counted):
    made = step_of(counted, "one").whole(columns[1] | {}, None, MemoryBudget(1e9))
    del made["other"]
    samples = GatheredSamples(made, None)
    assert counted.count == DRAWN
    for _ in range(3):
        samples.fetch(torch.arange(40, 80))
    assert counted.count == DRAWN + 40
    samples.fetch(torch.arange(60, 100))
    assert counted.count == DRAWN + 60


def test_what_is_asked_of_all_samples_is_as_if_they_were_made_at_once(columns, counted, tmp_path):
    lists, mapped = columns
    for store in (None, TokenStore(1.0, tmp_path / "cache")):
        eager, lazy = (
            GatheredSamples(step_of(counted, "one").whole({"one": each["one"]}, store, None), None)
            for each in (lists, mapped)
        )
        assert lazy.is_even
        assert lazy.is_right_padded
        assert eager.longest == lazy.longest == LONGEST
        assert eager.has_shorter
        assert lazy.has_shorter
        assert eager.fingerprint() == lazy.fingerprint()
        assert torch.equal(
            eager.fetch(torch.arange(50)).inputs["input_ids"],
            lazy.fetch(torch.arange(50)).inputs["input_ids"],
        )


def test_all_tokens_are_not_looked_through_for_a_count_that_nobody_gets(columns, counted, tmp_path):
    class Asked(CountedTokenizer):
        asked = 0

        @property
        def unk_token_id(self):
            self.asked += 1
            return self.tokenizer.unk_token_id

    for store in (None, TokenStore(1.0, tmp_path)):
        tokenizer = Asked(counted)
        made = step_of(tokenizer, "one").whole({"one": columns[1]["one"]}, store)
        assert tokenizer.asked == 1
        assert GatheredSamples(made, None).longest == LONGEST
        assert tokenizer.asked == 1


def test_a_note_says_of_how_many_texts_those_that_are_cut_were_drawn(columns, counted):
    step = step_of(counted, "one")
    step.whole({"one": columns[1]["one"]})
    (note,) = step.cut.notes(step.columns, step.max_length)
    assert f"of {DRAWN} texts, drawn from {COUNT}, of 'one' are cut to max_length {LONGEST}" in note


def test_tokens_take_the_smallest_type_and_reach_the_network_as_int64():
    column = Ragged.of([[1, 2], [3]], pad=0, length=None)
    assert column.values.dtype == torch.uint8
    wide = Ragged.of([[40_000, 2], [3]], pad=0, length=None)
    assert wide.values.dtype == torch.int32
    assert Ragged.of([[1]], pad=50_257, length=None).values.dtype == torch.int32
    assert wide.gather(torch.tensor([1, 0])).tolist() == [[3, 0], [40_000, 2]]
    assert wide.gather(torch.tensor([1, 0])).dtype == wide[0].values.dtype == torch.int64
    again = wide.take(torch.tensor([1, 0, 1]))
    assert [again[row].values.tolist() for row in range(3)] == [[3], [40_000, 2], [3]]


@pytest.fixture
def run(tmp_path, minilm, monkeypatch):
    draw = random.Random(0)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, draw.choice("abc")] for text in texts_of(3))
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    tokenize = {"type": "tokenize", "tokenizer": minilm, "max_length": LONGEST}
    bag = {"type": "EmbeddingBag", "num_embeddings": 30522, "embedding_dim": 4}
    layers = [
        {"name": "bag", "inputs": ["input_ids"], **bag},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]

    def run_(name, least, steps=40):
        monkeypatch.setattr(large_tables, "LEAST_BYTES", least)
        config = RunConfig.model_validate(
            {
                "model": {"layers": layers},
                "data": {
                    "source": {"type": "csv", "path": str(tmp_path / "t.csv")},
                    "split": {"validation": 0.2},
                    "transforms": [tokenize],
                },
                "task": {"type": "classification"},
                "optimizer": {"type": "SGD", "lr": 0.5},
                "train": {"steps": steps, "batch_size": 32},
            }
        )
        trainer = build_trainer(config, tmp_path / name)
        trainer.fit(quiet=True)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer

    return run_


def test_a_run_ends_with_the_same_bits_at_first_and_second_start_and_in_memory(run):
    in_memory, trainer = run("in memory", 1 << 40)
    assert not isinstance(next(iter(trainer_columns(trainer))), LazyColumn)
    for name in ("first", "second"):
        weights, trainer = run(name, 0)
        assert isinstance(next(iter(trainer_columns(trainer))), LazyColumn)
        assert weights.keys() == in_memory.keys()
        assert all(torch.equal(weights[each], in_memory[each]) for each in weights)


@pytest.mark.slow
def test_a_run_on_lists_goes_on_with_the_table_mapped(run):
    whole, _ = run("whole", 1 << 40, steps=40)
    run("stopped", 1 << 40, steps=20)
    weights, _ = run("stopped", 0, steps=40)
    assert all(torch.equal(weights[each], whole[each]) for each in weights)


def trainer_columns(trainer):
    return trainer.splits.train._columns.values()
