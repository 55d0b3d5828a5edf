"""Tokens of a large table's texts, made as they are needed and kept while there is room.

Letters: N texts, B of a batch, T tokens of all texts.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.memory_budget import MemoryBudget
from finetune.data.ragged import Ragged, Tokens
from finetune.data.table import Listed

_FIRST_ROOM = 1 << 16


class LazyTokens:
    """All outputs of a tokenizer for some texts.

    Args:
        texts: The texts.
        make: Tokenizes some texts; returns a column of them for each output.
        make_all: Does the same for all of `texts`, maybe from a store.
        drawn: Tokens of a few of the texts, from which the length of the others is expected.
        budget: Memory for tokens that are kept; None to keep none.
    """

    def __init__(
        self,
        texts: Listed,
        make: Callable[[list[Any]], dict[str, Ragged]],
        make_all: Callable[[], dict[str, Ragged]],
        drawn: dict[str, Ragged],
        budget: MemoryBudget | None,
    ) -> None:
        self._texts, self._make, self._make_all = texts, make, make_all
        self._drawn = drawn
        self._budget = budget
        self._pid = os.getpid()
        self._whole: dict[str, Ragged] | None = None
        self._flat = {name: _Growing() for name in drawn}
        # Arrays, not a dict: an entry of a dict takes as much memory as the tokens of a short text.
        self._starts = np.full(len(texts), -1)
        self._lengths = np.zeros(len(texts), np.int32)
        self._last: tuple[Tensor, dict[str, Ragged]] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def columns(self) -> dict[str, "LazyColumn"]:
        """A column for each output."""
        return {
            name: LazyColumn(self, name, column.pad, column.length)
            for name, column in self._drawn.items()
        }

    @property
    def whole(self) -> dict[str, Ragged]:
        """Tokens of all texts, made now unless they are there."""
        if self._whole is None:
            self._whole = self._make_all()
            # What was kept so far is contained in it.
            self._flat, self._last = {}, None
        return self._whole

    @property
    def is_whole(self) -> bool:
        """Whether the tokens of all texts are there."""
        return self._whole is not None

    def expected(self, name: str) -> int:
        """Return the padded length of a batch of the texts that were drawn."""
        return self._drawn[name].longest

    def batch(self, rows: Tensor) -> dict[str, Ragged]:
        """Return the tokens of the texts at `rows`, `(B,)`, in this order."""
        # Each output of a batch asks for the same rows.
        if self._last is not None and self._last[0] is rows:
            return self._last[1]
        made = self._kept(rows) if self._has_room() else self._make(self._texts.at(rows))
        self._last = rows, made
        return made

    def _has_room(self) -> bool:
        """Tell whether tokens are kept: in the run's own process, as long as memory allows."""
        # A worker process would keep tokens for itself alone, and lose them when it ends.
        if self._budget is None or self._pid != os.getpid():
            return False
        return all(flat.num_bytes <= self._budget.left_bytes for flat in self._flat.values())

    def _kept(self, rows: Tensor) -> dict[str, Ragged]:
        """Return the tokens of some texts from those that are kept, after making what lacks."""
        wanted = rows.numpy()
        is_lacking = self._starts[wanted] < 0
        if is_lacking.any():
            lacking = wanted[is_lacking]
            made = self._make(self._texts.at(torch.from_numpy(lacking)))
            self._keep(lacking, made)
            if is_lacking.all():
                return made
        starts, lengths = self._starts[wanted], self._lengths[wanted].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        # All texts in one gather, as in `Ragged.gather`: a loop over them is several times slower.
        told = torch.from_numpy(lengths)
        return {
            name: Ragged.flat(
                torch.from_numpy(self._flat[name].values[places]), told, pad=c.pad, length=c.length
            )
            for name, c in self._drawn.items()
        }

    def _keep(self, rows: NDArray[Any], made: dict[str, Ragged]) -> None:
        """Keep the tokens of some texts."""
        lengths = next(iter(made.values())).lengths.numpy()
        begins = next(iter(self._flat.values())).count
        self._starts[rows] = begins + np.cumsum(lengths) - lengths
        self._lengths[rows] = lengths
        for name, column in made.items():
            # Without the last number, which belongs to no text (see `Ragged`).
            grown = self._flat[name].append(column.values[:-1])
            if self._budget is not None:
                self._budget.left_bytes -= grown


@dataclass(frozen=True, slots=True)
class LazyColumn:
    """One output of a tokenizer, with the methods of `Ragged`; some make the tokens of all texts.

    Args:
        tokens: All outputs.
        name: Name of this one.
        pad: Number that batches are padded with.
        length: Length that each batch is padded to; None pads to its longest sequence.
    """

    tokens: LazyTokens
    name: str
    pad: int
    length: int | None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tokens:
        return self._some(torch.tensor([index]))[0]

    @property
    def whole(self) -> Ragged:
        """The tokens of all texts, which takes a while."""
        return self.tokens.whole[self.name]

    @property
    def expected(self) -> int:
        """Padded length of a batch, by some texts that were drawn."""
        return self.tokens.expected(self.name)

    def has_lengths_of(self, other: "Ragged | LazyColumn") -> bool:
        """Tell whether another column comes from the same texts by the same tokenizer."""
        return isinstance(other, LazyColumn) and other.tokens is self.tokens

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Return the length of each sequence at `rows`, `(B,)`."""
        return self._some(rows).lengths

    def width(self, rows: Tensor) -> int:
        """Return the length that the sequences at `rows` are padded to."""
        return self._some(rows).longest

    def gather(self, rows: Tensor, length: int | None = None) -> Tensor:
        """Return the sequences at `rows` padded to one length, `(B, T)`: theirs, or `length`."""
        return self._some(rows).gather(torch.arange(len(rows)), length)

    def fingerprint(self) -> bytes:
        """Return a hash of contents, boundaries and padding."""
        return self.whole.fingerprint()

    def _some(self, rows: Tensor) -> Ragged:
        """Return the sequences at `rows` as a column of their own."""
        if not self.tokens.is_whole:
            return self.tokens.batch(rows)[self.name]
        return self.whole.take(rows)


class _Growing:
    """A flat array that numbers are appended to, of the smallest type that holds all of them."""

    def __init__(self) -> None:
        self._room = np.empty(_FIRST_ROOM, np.uint8)
        self.count = 0

    @property
    def values(self) -> NDArray[Any]:
        """The numbers so far."""
        return self._room[: self.count]

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self._room.nbytes

    def append(self, values: Tensor) -> int:
        """Append numbers; return by how many bytes the memory has grown."""
        new, before = values.numpy(), self._room.nbytes
        end = self.count + len(new)
        # Doubled, so that a number is copied only a few times in all.
        size = max(len(self._room), 1 << max(0, end - 1).bit_length())
        dtype = np.promote_types(self._room.dtype, new.dtype)
        if size > len(self._room) or dtype != self._room.dtype:
            grown = np.empty(size, dtype)
            grown[: self.count] = self.values
            self._room = grown
        self._room[self.count : end] = new
        self.count = end
        return self._room.nbytes - before
