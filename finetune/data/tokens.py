"""Tokens of texts, stored on disk: a text is tokenized once, not anew in every run.

Letters: N texts, B of them at once, L tokens of the longest, T of all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from random import SystemRandom
from typing import Any

import torch
from torch import Tensor

from finetune.data.table import Listed
from finetune.store.shelf import key_of
from finetune.store.store import RowSpec, Store, StoreError

Encoded = Mapping[str, Sequence[Sequence[int]]]
"""What a tokenizer gives for some texts: by name of the output, the tokens of each."""
Sequences = tuple[Tensor, Tensor]
"""Tokens of all texts end to end, (T,) int64, and how many each has, (N,)."""

_LEAST_CHARACTERS = 100_000
"""Fewer take a few hundredths of a second."""
_AT_ONCE = 4096
_NUM_CHECKED = 4
_LENGTHS = "tokens of each"
"""The column that says how long the others are: no tokenizer has an output of this name."""


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """How texts become tokens.

    Args:
        encode: Tokenizes some texts.
        outputs: Names of what it gives.
        longest: More tokens than this no text has.
        about: What the tokens of a text depend on besides it; None if nobody can tell.
    """

    encode: Callable[[list[str]], Encoded]
    outputs: tuple[str, ...]
    longest: int
    about: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Where tokens are kept.

    Args:
        root: The folder of all stores.
        disk_gb: GiB that all of them may take.
        notes: Receives what a user should know, a line each.
    """

    root: Path
    disk_gb: float
    notes: list[str] = field(default_factory=list)

    def sequences(self, texts: Listed, tokenizing: Tokenizing) -> dict[str, Sequences] | None:
        """Return the tokens of `texts` by name of the output, as stored before or now.

        Some of those that were stored before are made anew and compared. None is returned for
        what is too little to be stored, or cannot be.
        """
        if tokenizing.about is None or sum(map(len, texts.values)) < _LEAST_CHARACTERS:
            return None
        outputs, longest = tokenizing.outputs, tokenizing.longest
        data = texts.fingerprint().hex()
        specs = {name: RowSpec((longest,), "int32", ragged=True) for name in outputs}
        try:
            store = Store.open(
                self.root,
                key_of({"texts": data, "longest": longest, "tokenizer": tokenizing.about}),
                specs | {_LENGTHS: RowSpec((), "int32")},
                len(texts),
                memory_gb=0,
                disk_gb=self.disk_gb,
                facts={"tokens": ", ".join(outputs), "data": data},
            )
            with closing(store):
                self._fill(store, texts, tokenizing)
                return _all_of(store, outputs)
        except StoreError as error:
            self.notes.append(f"tokens are not stored: {error.message}")
            return None

    def _fill(self, store: Store, texts: Listed, tokenizing: Tokenizing) -> None:
        """Tokenize what the store lacks."""
        there = store.has(torch.arange(len(texts)))
        stored = there.nonzero().squeeze(1).tolist()
        checked = SystemRandom().sample(stored, min(_NUM_CHECKED, len(stored)))
        if checked and not _are_right(store, texts, tokenizing, sorted(checked)):
            store.discard()
            there[:] = False
            self.notes.append(f"the tokens of store {store.meta.key} are wrong: all are made anew")
        self.notes.extend(store.notes)
        missing = (~there).nonzero().squeeze(1)
        for rows in missing.split(_AT_ONCE) if len(missing) else ():
            values = _padded(tokenizing.encode([texts[row] for row in rows.tolist()]))
            store.write(rows, values, values[_LENGTHS])


def tokenizer_facts(tokenizer: Any) -> dict[str, Any] | None:
    """Return what the tokens of a text depend on, as the tokenizer is set now.

    None for a tokenizer in Python, whose code may do anything.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "outputs": list(tokenizer.model_input_names),
        "backend": blake2b(backend.to_str().encode(), digest_size=16).hexdigest(),
        "versions": [version(package) for package in ("tokenizers", "transformers")],
    }


def _padded(encoded: Encoded) -> dict[str, Tensor]:
    """Return each output (B, L) int32, zeros behind the end of each, and the lengths (B,).

    Raises:
        StoreError: outputs of one text differ in length.
    """
    counts = {tuple(map(len, sequences)) for sequences in encoded.values()}
    if len(counts) != 1:
        raise StoreError("the tokenizer's outputs differ in length")
    lengths = torch.tensor(counts.pop(), dtype=torch.int32)
    is_token = _tokens_of(lengths, int(lengths.max()))
    values = {_LENGTHS: lengths}
    for name, sequences in encoded.items():
        flat = [number for sequence in sequences for number in sequence]
        values[name] = torch.zeros(is_token.shape, dtype=torch.int32)
        values[name][is_token] = torch.tensor(flat, dtype=torch.int32)
    return values


def _all_of(store: Store, outputs: Iterable[str]) -> dict[str, Sequences]:
    num_rows = store.meta.layout.num_rows
    parts = [store.read(rows) for rows in torch.arange(num_rows).split(_AT_ONCE)]
    lengths = torch.cat([part[_LENGTHS] for part in parts]).long()
    return {name: (torch.cat([_flat(part, name) for part in parts]), lengths) for name in outputs}


def _flat(rows: Mapping[str, Tensor], name: str) -> Tensor:
    padded = rows[name]
    return padded[_tokens_of(rows[_LENGTHS], padded.shape[1])].long()


def _tokens_of(lengths: Tensor, longest: int) -> Tensor:
    """Tell which places of a padded batch hold tokens, (B, L)."""
    return torch.arange(longest) < lengths[:, None]


def _are_right(store: Store, texts: Listed, tokenizing: Tokenizing, rows: list[int]) -> bool:
    now = _padded(tokenizing.encode([texts[row] for row in rows]))
    then = store.read(torch.tensor(rows))
    return all(torch.equal(now[name], then[name]) for name in now)
