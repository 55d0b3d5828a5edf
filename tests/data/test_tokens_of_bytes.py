"""Tokenizers of bytes, as of GPT-2, RoBERTa and Llama: words, places in texts, types of numbers."""

import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune.data.samples import TOKEN_ENDS, TOKEN_STARTS, WORDS
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.table import Listed
from finetune.data.targets.answer_places import AnswerPlaces

TEXTS = [
    "Paris is in France",
    "  a naïve café,  déjà vu; ",
    "🙂 smiles 🙂🙂 twice\tand 日本語 too",
    "x",
    "don't stop 3.5 km/h",
]
FORMS = {
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "roberta": (pre_tokenizers.ByteLevel(add_prefix_space=False), True),
    "with blank": (pre_tokenizers.ByteLevel(add_prefix_space=True), True),
    "llama": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\s?\S+|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        False,
    ),
}


def tokenizer_of(form):
    """A tokenizer of bytes that is trained on the texts."""
    before, trims = FORMS[form]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = before
    made.post_processor = processors.ByteLevel(trim_offsets=trims)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<pad>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


@pytest.mark.parametrize("form", FORMS)
def test_each_word_begins_one_token_and_is_the_one_behind_a_blank(form):
    tokenizer = tokenizer_of(form)
    columns = Tokenize(("t",), 99, False, tokenizer, ()).whole({"t": Listed(TEXTS, "words")})
    for row, text in enumerate(TEXTS):
        ids, numbers = (columns[name][row].values.tolist() for name in ("input_ids", WORDS))
        begins = [place for place, number in enumerate(numbers) if number >= 0]
        assert [numbers[place] for place in begins] == [*range(len(text.split()))]
        ends = [*begins[1:], len(ids)]
        words = [tokenizer.decode(ids[a:b]) for a, b in zip(begins, ends, strict=True)]
        assert words == [f" {word}" for word in text.split()]
        behind = tokenizer(" " + " ".join(text.split()), add_special_tokens=False)["input_ids"]
        assert ids == behind


def places_of(form, texts, answers):
    """Return tokens of each text, and the first and last one of its answer."""
    tokenizer = tokenizer_of(form)
    columns = Tokenize(("q", "t"), 99, False, tokenizer, ()).whole(
        {"q": Listed(["who?"] * len(texts), "text"), "t": Listed(texts, "context")}
    )
    places = AnswerPlaces(columns[TOKEN_STARTS], columns[TOKEN_ENDS], torch.tensor(answers))
    ids = [columns["input_ids"][row].values.tolist() for row in range(len(texts))]
    return tokenizer, ids, places.gather(torch.arange(len(texts))).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_the_tokens_of_an_answer_are_its_bytes_and_a_blank_before_it_at_most(form):
    spans = [
        (text, first.start(), last.end())
        for text in TEXTS
        for first in re.finditer(r"\S+", text)
        for last in re.finditer(r"\S+", text)
        if first.start() <= last.start()
    ]
    texts, answers = [text for text, *_ in spans], [span for _, *span in spans]
    tokenizer, ids, found = places_of(form, texts, answers)
    for (text, start, end), tokens, (first, last) in zip(spans, ids, found, strict=True):
        said = tokenizer.decode(tokens[first : last + 1])
        assert said.strip() == text[start:end], (text, said)


@pytest.mark.parametrize(
    ("largest", "dtype"), [(300, torch.int16), (40_000, torch.int32)], ids=["small", "large"]
)
def test_tokens_take_the_smallest_type_and_a_network_gets_the_same_numbers(largest, dtype):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {letter: number for number, letter in enumerate(letters, 1)}
    made = Tokenizer(models.BPE({"<pad>": 0, **numbers, "Ġi": largest}, [("Ġ", "i")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    columns = Tokenize(("t",), 99, False, tokenizer, ()).whole({"t": Listed(TEXTS, "text")})
    assert columns["input_ids"].values.dtype == dtype
    assert columns["attention_mask"].values.dtype == torch.uint8
    wanted = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert largest in wanted["input_ids"]
    for name, tokens in wanted.items():
        given = columns[name].gather(torch.arange(len(TEXTS)))
        assert given.dtype == torch.int64
        assert torch.equal(given, tokens)
