"""Tokens of texts, stored on disk: a text is tokenized once, not anew in every run.

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

from finetune.data.table import Listed
from finetune.store.directory import cache_root, key_of, remove_store
from finetune.store.layout import RowSpec, StoreError
from finetune.store.store import Store

Encoded = Mapping[str, Sequence[Any]]
"""What a tokenizer gives for some texts: by name of the output, the tokens of each; and `CUT`."""

CUT = "tokens cut"
"""Beside the outputs: how many tokens of each text were cut off. No output has such a name."""

_LEAST_CHARACTERS = 500_000
"""Fewer are tokenized in a tenth of a second."""
_TOKENS_AT_ONCE = 4 << 20
_NUM_CHECKED = 4


class Sequences(NamedTuple):
    """Tokens of several texts, end to end."""

    values: Tensor
    """(T,) int64"""
    lengths: Tensor
    """How many each text has, (N,) int64."""


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """How texts become tokens.

    Args:
        encode: Tokenizes some texts, or pairs of texts.
        longest: More tokens than this no text has.
        facts: Tells what the tokens of a text depend on besides it, as things are after a call of
            `encode`; None if nobody can.
    """

    encode: Callable[[list[Any]], Encoded]
    longest: int
    facts: Callable[[], str | None]


class TokenStore:
    """Keeps the tokens of whole sources, so that it does not matter how these are parted.

    Args:
        disk_gb: GiB that all stores together may take. None is removed to make room for tokens,
            which are soon made again.
        root: The folder of all stores; the user's if left out.
    """

    def __init__(self, disk_gb: float, root: Path | None = None) -> None:
        self.notes: list[str] = []
        """What a user should know, a line each."""
        self._disk_gb, self._root = disk_gb, root
        self._fingerprint: tuple[Listed, str] | None = None

    def sequences(self, texts: Listed, tokenizing: Tokenizing) -> dict[str, Sequences] | None:
        """Return the tokens of `texts` by name of the output, as stored before or now.

        Among them, as `CUT`, is how many tokens of each text were cut off. Some of those that were
        stored before are made anew and compared. None is returned for what is too little to be
        stored, or cannot be.
        """
        whole, rows = texts.source
        if sum(map(num_characters, whole.values)) < _LEAST_CHARACTERS:
            return None
        try:
            # before anything is stored: outputs of another kind are refused here
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
        """Tokenize what the store lacks of `rows`; return the tokens of all."""
        at_once = max(1, _TOKENS_AT_ONCE // tokenizing.longest)
        missing = rows[~store.has(rows)]
        for some in missing.split(at_once) if len(missing) else ():
            store.write(some, *_padded(tokenizing.encode([whole[row] for row in some.tolist()])))
        for note in store.take_notes():
            self._note(note)
        if not store.has(rows).all():
            raise StoreError(f"another process has given up rows of store {store.meta.key}")
        parts = [store.read_flat(some) for some in rows.split(at_once)]
        lengths = torch.cat([lengths for _, lengths in parts])
        joined = {name: torch.cat([values[name] for values, _ in parts]) for name in parts[0][0]}
        one_each = torch.ones_like(lengths)
        return {
            name: Sequences(values.long().flatten(), one_each if name == CUT else lengths)
            for name, values in joined.items()
        }

    def _fingerprint_of(self, whole: Listed) -> str:
        """Return the hash of a source; it is asked for again for every part of it."""
        if self._fingerprint is None or self._fingerprint[0] is not whole:
            self._fingerprint = whole, whole.fingerprint().hex()
        return self._fingerprint[1]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def tokenizer_facts(tokenizer: Any) -> str | None:
    """Return a name for all that the tokens of a text depend on, as the tokenizer is set now.

    None for a tokenizer in Python, whose code may do anything, and for one that draws lots.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(backend.model, "dropout", None):
        return None
    given = {
        name: str(value)
        for name, value in tokenizer.init_kwargs.items()
        # where it was read from says nothing
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
    """Return how many tokens a text may have on the average: hardly more than characters."""
    lengths = map(num_characters, whole.values)
    return max(1, sum(min(longest, length) for length in lengths) // len(whole))


def num_characters(text: str | tuple[str, ...]) -> int:
    """Return the length of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _padded(encoded: Encoded) -> tuple[dict[str, Tensor], Tensor]:
    """Return each output (B, L) int32, zeros behind the end of each, and the lengths (B,).

    The first entry is `CUT`, (B, 1).

    Raises:
        StoreError: these are not whole numbers, as many for a text in every output.
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
    """Tokenize some texts that are stored, and compare."""
    stored = rows[store.has(rows)].tolist()
    checked = SystemRandom().sample(stored, min(_NUM_CHECKED, len(stored)))
    if not checked:
        return True
    now, _ = _padded(tokenizing.encode([whole[row] for row in checked]))
    then = store.read(torch.tensor(checked))
    return now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
