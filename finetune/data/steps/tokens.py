"""Store tokens on disk, so that a text is tokenized once and not in every run.

Letters: N texts, B of them at once, L tokens of the longest, T of all.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.counting import Counting
from finetune.data.table import Listed
from finetune.store.directory import cache_root, key_of, remove_store
from finetune.store.layout import RowSpec, StoreError
from finetune.store.store import Store

Encoded = Mapping[str, Sequence[Any]]
"""Outputs of a tokenizer for some texts: tokens of each text by name of the output, and `CUT`."""

CUT = "tokens cut"
"""Key, besides the outputs, for the number of tokens cut off each text. No output is called so."""

_LEAST_CHARACTERS = 500_000
"""Fewer characters are tokenized in a tenth of a second, so they are not stored."""
_TOKENS_AT_ONCE = 4 << 20
_NUM_CHECKED = 4


class Sequences(NamedTuple):
    """Tokens of several texts, stored end to end."""

    values: Tensor
    """(T,) int32"""
    lengths: Tensor
    """Number of tokens of each text, (N,) int64."""


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """How texts become tokens.

    Args:
        encode: Tokenizes some texts, or pairs of texts.
        longest: Upper bound on the tokens of a text.
        facts: Returns what the tokens of a text depend on besides the text, valid after a call of
            `encode`; None if that cannot be told.
    """

    encode: Callable[[list[Any]], Encoded]
    longest: int
    facts: Callable[[], str | None]


class TokenStore:
    """Stores the tokens of whole sources, so that it does not matter how a source is split.

    Args:
        disk_gb: GiB that all stores together may take; none is removed to make room for tokens,
            which are quickly made again.
        root: Folder of all stores; the user's one if left out.
    """

    def __init__(self, disk_gb: float, root: Path | None = None) -> None:
        self.notes: list[str] = []
        """Lines to report to the user."""
        self._disk_gb, self._root = disk_gb, root
        self._fingerprint: tuple[Listed, str] | None = None

    def sequences(self, texts: Listed, tokenizing: Tokenizing) -> dict[str, Sequences] | None:
        """Return the tokens of `texts` by output of the tokenizer, from the store; complete it.

        The number of tokens cut off each text is among them as `CUT`. A few of the stored texts are
        tokenized again for comparison. Returns None if the texts are too short to be stored, or
        cannot be.
        """
        whole, rows = texts.source
        if sum(map(num_characters, whole.values)) < _LEAST_CHARACTERS:
            return None
        try:
            # before anything is stored: outputs of an unknown kind are refused here
            outputs = tuple(_padded(tokenizing.encode(list(whole.values[:1])))[0])[1:]
            if (facts := tokenizing.facts()) is None:
                return None
            return self._stored(whole, rows, tokenizing, outputs, facts)
        except StoreError as error:
            self._note(f"tokens are not stored: {error.in_one_line}")
            return None

    def _stored(
        self,
        whole: Listed,
        rows: Tensor,
        tokenizing: Tokenizing,
        outputs: Sequence[str],
        facts: str,
    ) -> dict[str, Sequences]:
        """Return the tokens from the store of a source; a store that is wrong is made anew."""
        root, longest = self._root or cache_root(), tokenizing.longest
        data = self._fingerprint_of(whole)
        key = key_of({"texts": data, "longest": longest, "tokenizer": facts, "counts": [CUT]})
        spec = RowSpec((_expected(whole, longest),), "int32", ragged=True)
        specs = {CUT: RowSpec((1,), "int32"), **dict.fromkeys(outputs, spec)}

        def opened() -> Store:
            return Store.open(
                root,
                key,
                specs,
                len(whole),
                memory_gb=0,
                disk_gb=self._disk_gb,
                facts={"tokens": "/".join(outputs), "data": data},
                evicts=False,
            )

        with closing(opened()) as store:
            if _is_right(store, whole, rows, tokenizing):
                return self._filled(store, whole, rows, tokenizing)
        self._note(f"the tokens of store {key} are wrong: all are made anew")
        if not remove_store(root, key):
            raise StoreError(f"another process has store {key} open")
        with closing(opened()) as store:
            return self._filled(store, whole, rows, tokenizing)

    def _filled(
        self, store: Store, whole: Listed, rows: Tensor, tokenizing: Tokenizing
    ) -> dict[str, Sequences]:
        """Tokenize those of `rows` that the store lacks; return the tokens of all `rows`."""
        # In portions, so that padding short texts to a long one does not take all memory.
        at_once = max(1, _TOKENS_AT_ONCE // tokenizing.longest)
        missing, done = rows[~store.has(rows)], 0
        counting = Counting("tokenizing", "texts")
        for some in missing.split(at_once) if len(missing) else ():
            store.write(some, *_padded(tokenizing.encode(whole.at(some))))
            done += len(some)
            counting.at(done, done / len(missing))
        for note in store.take_notes():
            self._note(note)
        # Another process may have discarded rows of a store that it found damaged.
        if not store.has(rows).all():
            raise StoreError(f"another process has given up rows of store {store.meta.key}")
        parts = [store.read_flat(some) for some in rows.split(at_once)]
        lengths = torch.cat([lengths for _, lengths in parts])
        joined = {name: torch.cat([values[name] for values, _ in parts]) for name in parts[0][0]}
        one_each = torch.ones_like(lengths)
        return {
            name: Sequences(values.flatten(), one_each if name == CUT else lengths)
            for name, values in joined.items()
        }

    def _fingerprint_of(self, whole: Listed) -> str:
        """Return the hash of a source; it is kept, as each part of the source asks for it."""
        if self._fingerprint is None or self._fingerprint[0] is not whole:
            self._fingerprint = whole, whole.fingerprint().hex()
        return self._fingerprint[1]

    def _note(self, text: str) -> None:
        """Add a line for the user, once."""
        # Each part of a source would give the same note again.
        if text not in self.notes:
            self.notes.append(text)


def tokenizer_facts(tokenizer: Any) -> str | None:
    """Return a text that identifies all that tokens depend on, as the tokenizer is set now.

    None for a tokenizer in Python, whose code may do anything, and for one with random dropout.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # BPE with dropout splits words at random, so stored tokens would be those of one draw.
    if backend is None or getattr(backend.model, "dropout", None):
        return None
    given = {
        name: str(value)
        for name, value in tokenizer.init_kwargs.items()
        # where it was loaded from does not matter
        if not name.endswith(("_file", "name_or_path", "local_files_only"))
    }
    return key_of(
        {
            "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
            "outputs": list(tokenizer.model_input_names),
            "settings": given | {"split_special_tokens": str(tokenizer.split_special_tokens)},
            "backend": blake2b(backend.to_str().encode(), digest_size=16).hexdigest(),
            "versions": [version(package) for package in ("tokenizers", "transformers")],
        }
    )


def _expected(whole: Listed, longest: int) -> int:
    """Return the expected mean number of tokens per text: hardly more than its characters."""
    lengths = map(num_characters, whole.values)
    return max(1, sum(min(longest, length) for length in lengths) // len(whole))


def num_characters(text: str | tuple[str, ...]) -> int:
    """Return the number of characters of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _padded(encoded: Encoded) -> tuple[dict[str, Tensor], Tensor]:
    """Return each output (B, L) int32, with zeros behind the end of each text, and lengths (B,).

    The first output is `CUT`, (B, 1).

    Raises:
        StoreError: outputs are not whole numbers, or differ in length for one text.
    """
    given, encoded = encoded, {name: each for name, each in encoded.items() if name != CUT}
    try:
        counts = {tuple(map(len, sequences)) for sequences in encoded.values()}
        flat = {
            name: torch.tensor([number for sequence in sequences for number in sequence])
            for name, sequences in encoded.items()
        }
    except (TypeError, ValueError) as error:
        raise StoreError("the tokenizer gives more than lists of numbers") from error
    if len(counts) != 1:
        raise StoreError("the tokenizer's outputs differ in length")
    lengths = torch.tensor(counts.pop())
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]
    cut = given.get(CUT, [0] * len(lengths))
    values = {CUT: torch.tensor(cut, dtype=torch.int32).unsqueeze(1)}
    for name, numbers in flat.items():
        if len(numbers) and (numbers.dtype != torch.int64 or numbers.abs().max() > 2**31 - 1):
            raise StoreError(f"the tokenizer's {name!r} are no whole numbers of 32 bits")
        values[name] = torch.zeros(is_token.shape, dtype=torch.int32)
        values[name][is_token] = numbers.int()
    return values, lengths


def _is_right(store: Store, whole: Listed, rows: Tensor, tokenizing: Tokenizing) -> bool:
    """Tell whether some stored texts, drawn at random, have the tokens that they get now."""
    stored = rows[store.has(rows)].tolist()
    # A store may be damaged, or made by a tokenizer that only looks the same.
    checked = SystemRandom().sample(stored, min(_NUM_CHECKED, len(stored)))
    if not checked:
        return True
    now, _ = _padded(tokenizing.encode(whole.at(torch.tensor(checked))))
    then = store.read(torch.tensor(checked))
    return now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
