"""The step from a text, or a pair of texts, to tokens."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.counting import Counting
from finetune.data.lazy_tokens import LazyColumn, LazyTokens
from finetune.data.memory_budget import MemoryBudget
from finetune.data.ragged import Ragged, Tokens
from finetune.data.readers.mapped import MappedCells, Positions
from finetune.data.samples import (
    TOKEN_ENDS,
    TOKEN_STARTS,
    WORDS,
    Columns,
    Prepared,
    Sample,
    replaced,
)
from finetune.data.steps.cut_texts import CutTexts, tokens_cut
from finetune.data.steps.tokens import (
    CUT,
    Encoded,
    Sequences,
    Tokenizing,
    TokenStore,
    tokenizer_facts,
)
from finetune.data.table import Listed, Numbers
from finetune.data.targets.words import first_tokens, needs_blank, token_places, words_of
from finetune.errors import DataError, Key, named

_NUM_DRAWN = 1000
"""Texts that are tokenized at once, and texts of a large table that say how long they all are."""
_MOST_AT_ONCE = 4000
"""Texts of a large table of which more are tokenized as they are needed."""
_AT_A_TIME = 1 << 22
"""Tokens that are compared at a time."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Turns a text, or a pair of texts, into `input_ids`, `attention_mask` and further outputs."""

    columns: tuple[str, ...]
    """Name of the text column, or of both columns of a pair."""
    max_length: int
    pad_to_max: bool
    tokenizer: Any
    key: Key
    cut: CutTexts = field(default_factory=CutTexts, compare=False)
    """Counts texts that are cut; mutated by each call."""
    counts: bool = field(default=True, compare=False)
    """Whether `cut` counts the texts of whole columns."""
    is_of_words: bool = False
    """Whether it takes words, and says in the column `WORDS` which one begins with each token."""
    before_words: str = ""
    """What is put before each word."""
    is_of_answers: bool = False
    """Whether it takes a question and a text with its answer, and says in the columns
    `TOKEN_STARTS` and `TOKEN_ENDS` where each token is in the text. Only the text is cut."""
    prefix: str = ""
    """Text before the names of the outputs: `first.` for a text of several, tokenized singly."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns that take the place of the text."""
        return tuple(f"{self.prefix}{name}" for name in self.tokenizer.model_input_names)

    def _name(self, output: str) -> str:
        """Return the name of the column that one of the tokenizer's outputs becomes."""
        return output if output in (WORDS, TOKEN_STARTS, TOKEN_ENDS) else f"{self.prefix}{output}"

    def __call__(self, sample: Sample) -> Sample:
        """Return one sample with its text or pair replaced by tokens."""
        texts = tuple(sample[name] for name in self.columns)
        for name, text in zip(self.columns, texts, strict=True):
            if not isinstance(text, str):
                raise self._no_text(name, type(text).__name__)
        encoded = dict(self._encode([texts if len(texts) > 1 else texts[0]]))
        encoded.pop(CUT, None)
        tokens = {self._name(name): self._tokens(name, ids[0]) for name, ids in encoded.items()}
        return replaced(sample, self.columns, tokens)

    def whole(
        self,
        columns: Columns,
        store: TokenStore | None = None,
        budget: MemoryBudget | None = None,
    ) -> Columns:
        """Return the columns with all texts replaced by tokens, stored ones as far as possible.

        Those of a large table's texts are made as they are needed.

        Args:
            columns: The columns.
            store: Keeps tokens from run to run; None for no store.
            budget: Memory for tokens that are made as they are needed; None to keep none.
        """
        texts = [self._text(name, columns[name]) for name in self.columns]
        column = texts[0] if len(texts) == 1 else paired(texts)
        own = self
        if column.kind == "words":
            own = self._for_words()
        elif texts[-1].kind == "context" and len(texts) > 1:
            self.refuse_untold_places()
            own = replace(self, is_of_answers=True)
        made: Mapping[str, Ragged | LazyColumn]
        if not all(isinstance(each.values, MappedCells) for each in texts):
            made = own._all(column, store)
        elif len(column) <= _MOST_AT_ONCE:
            # The whole table may be larger by far, and is not read for a few of its rows.
            made = own._made(column)
        else:
            made = own._later(column, store, budget)
        named_made = {self._name(name): column for name, column in made.items()}
        return replaced(columns, self.columns, named_made)

    def _for_words(self) -> "Tokenize":
        """Return this step for words, which counts together with it.

        Raises:
            DataError: its tokenizer does not tell which token belongs to which word.
        """
        self.refuse_untold_places()
        blank = " " if needs_blank(self.tokenizer) else ""
        return replace(self, is_of_words=True, before_words=blank)

    def refuse_untold_places(self) -> None:
        """Raise `DataError` if the tokenizer does not tell where its tokens are in a text."""
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            raise DataError(
                f"{type(self.tokenizer).__name__} does not tell the tokens of a word, which the "
                "task needs",
                hint="a tokenizer with a file tokenizer.json does",
                key=self.key,
            )

    def _all(self, column: Listed, store: TokenStore | None) -> dict[str, Ragged]:
        """Return tokens of all texts."""
        return self._stored(column, store) or self._made(column)

    def _later(
        self, column: Listed, store: TokenStore | None, budget: MemoryBudget | None
    ) -> dict[str, LazyColumn]:
        """Return tokens that are made as they are needed; count what is cut of some texts."""
        # At equal steps: the first texts of a table are often all of one class or one source.
        drawn = torch.arange(0, len(column), -(-len(column) // _NUM_DRAWN))
        self.cut.drawn_from += len(column)
        first = self._counted(column.at(drawn))
        # The line on cut texts comes from the drawn texts. Later ones must not change its counts.
        uncounted = replace(self, counts=False)

        def make(texts: list[Any]) -> dict[str, Ragged]:
            return self._ragged(self._outputs(self._tokenized(texts)))

        return LazyTokens(
            column, make, lambda: uncounted._all(column, store), first, budget
        ).columns

    def _text(self, name: str, column: Prepared) -> Listed:
        """Return a column of text; raise for anything else."""
        if not isinstance(column, Listed) or column.kind == "things":
            raise self._no_text(name, "numbers" if isinstance(column, Numbers) else "no text")
        return column

    def _stored(self, column: Listed, store: TokenStore | None) -> dict[str, Ragged] | None:
        """Return tokens from the store, which is completed; None if they cannot be stored."""
        if store is None:
            return None
        tokenizing = Tokenizing(self._encode, self.max_length, self._facts)
        found = store.sequences(column, tokenizing)
        if found is None:
            return None
        # The last of them, since the first may be `CUT`, with one number for each text.
        cut = found.pop(CUT).values
        self._count(next(reversed(found.values())).lengths, cut, found.get("input_ids"))
        return {
            name: Ragged.flat(*tokens, pad=self._pad(name), length=self._length)
            for name, tokens in found.items()
        }

    def _made(self, column: Listed) -> dict[str, Ragged]:
        """Return tokens of all texts, by tokenizing them now."""
        parts = []
        counting = Counting(f"tokenizing {named(self.columns)}", "texts")
        # A portion at a time: what a tokenizer returns for a text takes some 30 kB.
        for number, rows in enumerate(torch.arange(len(column)).split(_NUM_DRAWN)):
            parts.append(self._counted(column.at(rows)))
            done = number * _NUM_DRAWN + len(rows)
            counting.at(done, done / max(1, len(column)))
        return {name: Ragged.joined([part[name] for part in parts]) for name in parts[0]}

    def _counted(self, texts: list[Any]) -> dict[str, Ragged]:
        """Return tokens of some texts, which count among those that may be cut."""
        encoded = dict(self._encode(texts))
        cut = torch.tensor(encoded.pop(CUT, [0] * len(texts)))
        made = self._ragged(encoded)
        self._count(next(iter(made.values())).lengths, cut, made.get("input_ids"))
        return made

    def _ragged(self, encoded: Encoded) -> dict[str, Ragged]:
        """Return the outputs for some texts as columns."""
        return {
            name: Ragged.of(ids, pad=self._pad(name), length=self._length)
            for name, ids in encoded.items()
        }

    def _count(self, lengths: Tensor, cut: Tensor, ids: Ragged | Sequences | None) -> None:
        """Add texts to the count of what was cut, and what is unknown."""
        if not self.counts:
            return
        of_no_text = self.tokenizer.num_special_tokens_to_add(pair=len(self.columns) > 1)
        sign = self.tokenizer.unk_token_id
        # Tokenizers of bytes know everything, and name a token of another meaning.
        others = {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}
        unknown = 0
        if ids is not None and sign is not None and sign not in others:
            # In pieces: the answers to a comparison of all tokens take memory beside them.
            unknown = sum(int((piece == sign).sum()) for piece in ids.values.split(_AT_A_TIME))
        self.cut.add(lengths, cut, of_no_text, unknown)

    @property
    def _length(self) -> int | None:
        """Length that each batch is padded to; None for its longest sequence."""
        return self.max_length if self.pad_to_max else None

    def _encode(self, texts: list[Any]) -> dict[str, Any]:
        """Return the tokenizer's outputs for some texts, and how many tokens each lost (`CUT`)."""
        encoded = self._tokenized(texts)
        outputs = self._outputs(encoded)
        lengths = [len(ids) for ids in next(iter(outputs.values()), ())]
        encodings = getattr(encoded, "encodings", None)
        if encodings is None:
            return outputs | {CUT: self._cut_in_python(texts, lengths)}
        return outputs | {CUT: tokens_cut(encodings, lengths, self.max_length)}

    def _cut_in_python(self, texts: list[Any], lengths: Sequence[int]) -> list[int]:
        """Return how many tokens a tokenizer written in Python cut off each text or pair.

        It does not tell, so that texts as long as the limit are tokenized once more without one.
        """
        full = [number for number, length in enumerate(lengths) if length >= self.max_length]
        cut = [0] * len(lengths)
        if full:
            again = dict(self._tokenized([texts[number] for number in full], whole=True))
            for number, ids in zip(full, next(iter(again.values())), strict=True):
                cut[number] = len(ids) - lengths[number]
        return cut

    def _outputs(self, encoded: Any) -> dict[str, Any]:
        """Return the outputs of the tokenizer, with the number of the word that a token begins."""
        if self.is_of_answers:
            places = [token_places(e) for e in encoded.encodings]
            begins, ends = ([each[side] for each in places] for side in range(2))
            return dict(encoded) | {TOKEN_STARTS: begins, TOKEN_ENDS: ends}
        if not self.is_of_words:
            return dict(encoded)
        return dict(encoded) | {WORDS: [first_tokens(e.word_ids) for e in encoded.encodings]}

    def _facts(self) -> str | None:
        """Return what tokens depend on besides the texts; None if that cannot be told."""
        facts = tokenizer_facts(self.tokenizer)
        if facts is not None and self.is_of_answers:
            return f"{facts} with places in the second text, which alone is cut"
        # A text that is cut into words has other tokens.
        return f"{facts} of words" if facts is not None and self.is_of_words else facts

    def _tokenized(self, texts: list[Any], *, whole: bool = False) -> Any:
        """Return what the tokenizer gives for some texts, or pairs: cut, or `whole`."""
        sides = [[*map(self._words, texts)] if self.is_of_words else texts]
        if len(self.columns) > 1:
            sides = [[text[side] for text in texts] for side in range(len(self.columns))]
        try:
            # Without padding: batches pad, each only as far as it needs.
            given = {"is_split_into_words": True} if self.is_of_words else {}
            # Texts beyond what a network takes are only counted: nobody is to be warned of them.
            limit = {"verbose": False} if whole else {"max_length": self.max_length}
            cut: bool | str = not whole
            if cut and self.is_of_answers:
                cut = "only_second"
            return self.tokenizer(*sides, truncation=cut, **limit, **given)
        except (TypeError, UnicodeEncodeError) as error:
            # JSON may contain half of a surrogate pair, which no encoding has
            for name, side in zip(self.columns, sides, strict=True):
                each = chain.from_iterable(side) if self.is_of_words else iter(side)
                if (broken := next(filter(_SURROGATE.search, each), None)) is not None:
                    found = f"{shown(broken)}, which holds half a character"
                    raise self._no_text(name, found) from error
            raise

    def _words(self, text: Any) -> list[str]:
        """Return the words of a sample as the tokenizer takes them."""
        return [self.before_words + word for word in words_of(text) or ()]

    def _tokens(self, name: str, ids: list[int]) -> Tokens:
        """Return one sample of an output."""
        return Tokens(torch.tensor(ids, dtype=torch.int64), self._pad(name), self._length)

    def _pad(self, name: str) -> int:
        """Return the number that pads an output; if it is a real token, the mask hides it."""
        if name == "input_ids":
            # Decoders such as GPT-2 have no padding token.
            known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
            return int(next(number for number in known if number is not None))
        if name in (WORDS, TOKEN_STARTS, TOKEN_ENDS):
            return -1
        return int(self.tokenizer.pad_token_type_id) if name == "token_type_ids" else 0

    def _no_text(self, name: str, found: str) -> DataError:
        """Return the error for a column or value that is not text."""
        return DataError(f"tokenize needs text, column {name!r} holds {found}", key=self.key)


@dataclass(frozen=True, slots=True)
class _Pairs(Sequence[tuple[str, ...]]):
    """Texts of several columns side by side; a tuple is made when it is read."""

    sides: Sequence[Listed]

    def __len__(self) -> int:
        return len(self.sides[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.at(np.arange(*index.indices(len(self))))
        return tuple(side[index] for side in self.sides)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return zip(*(side.values for side in self.sides), strict=True)

    def at(self, positions: Positions) -> list[tuple[str, ...]]:
        """Return the tuples at some positions."""
        rows = torch.from_numpy(positions)
        return list(zip(*(side.at(rows) for side in self.sides), strict=True))


def paired(columns: Sequence[Listed]) -> Listed:
    """Return text columns side by side, each sample a tuple; `taken` keeps their origin."""

    def zipped(some: Sequence[Listed]) -> Listed:
        return Listed(_Pairs(some), "text")

    both = zipped(columns)
    sources = [column.source for column in columns]
    return replace(both, taken=(zipped([whole for whole, _ in sources]), sources[0][1]))
