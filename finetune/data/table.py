"""Columns of samples: what sources give, and what transforms and batches are made from.

Letters: N samples, B samples of a batch, T tokens.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.data.audio import Audio
from finetune.data.hashes.contents import content_of
from finetune.data.images import Images
from finetune.data.readers.mapped import Distinct, MappedCells, ReadTogether
from finetune.data.readers.row_places import Places
from finetune.data.sources.kept_table import KeptTable
from finetune.errors import DataError


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of numbers `(N, ...)`; all samples have one shape.

    Args:
        values: The numbers.
        is_cells: Whether they are all cells of one column of a mapped table, in their order.
        was_whole: Whether they are floats that were made of whole numbers.
    """

    values: Tensor
    is_cells: bool = field(default=False, compare=False)
    was_whole: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        # A copy, since the user's transform may change it in place.
        return self.values[index].clone()

    def take(self, rows: Tensor) -> "Numbers":
        """Return the samples at `rows`."""
        return Numbers(self.values[rows], was_whole=self.was_whole)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the samples at `rows` as a new tensor `(B, ...)`."""
        return self.values[rows]

    def digests(self) -> Iterator[bytes | None]:
        """Yield a digest of each sample: equal for exact copies, and for nothing else."""
        values = self.values.contiguous().numpy()
        return (blake2b(row.tobytes(), digest_size=16).digest() for row in values)

    def fingerprint(self) -> bytes:
        """Return a hash of dtype, shape and contents."""
        digest = blake2b(f"{self.values.dtype}{tuple(self.values.shape)}".encode(), digest_size=16)
        digest.update(self.values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Listed:
    """A column whose samples are in a list.

    Args:
        values: The samples.
        kind: `text`; `cells` of a csv file, which their use decides to read as numbers or text;
            `words`, each sample a list of words or a text with blanks between them; `context`,
            texts that hold the answers to questions; or `things`, which is anything else.
        taken: The column that these samples were taken from, and their positions in it `(N,)`;
            None for a whole column.
    """

    values: Sequence[Any]
    kind: Literal["text", "cells", "words", "context", "things"]
    taken: "tuple[Listed, Tensor] | None" = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]

    def at(self, rows: Tensor) -> list[Any]:
        """Return the samples at `rows` in a list."""
        if isinstance(self.values, ReadTogether):
            return self.values.at(rows.numpy())
        return [self.values[row] for row in rows.tolist()]

    def take(self, rows: Tensor) -> "Listed":
        """Return the samples at `rows`."""
        # Where samples came from is kept through every split, so that stored tokens of the whole
        # column serve all parts.
        whole, places = self.source
        taken = whole, places[rows]
        if isinstance(self.values, MappedCells):
            return Listed(self.values.take(rows.numpy()), self.kind, taken)
        return Listed(self.at(rows), self.kind, taken)

    @property
    def source(self) -> "tuple[Listed, Tensor]":
        """The whole column, and the positions of these samples in it, `(N,)`."""
        return self.taken or (self, torch.arange(len(self)))

    def digests(self) -> Iterator[bytes | None]:
        """Yield a digest of each sample, equal for exact copies only; None for unknown objects."""
        for content in map(content_of, self.values):
            yield None if content is None else blake2b(content, digest_size=16).digest()

    def fingerprint(self) -> bytes:
        """Return a hash of the contents; random if some value cannot be compared."""
        whole = blake2b(digest_size=16)
        for digest in self.digests():
            whole.update(digest or os.urandom(16))
        return whole.digest()

    def distinct(self) -> Distinct:
        """Return the different values in order of first appearance, and each sample's value.

        The value of a sample is given as its position among the different values. Values must be
        hashable.
        """
        if isinstance(self.values, MappedCells):
            return self.values.distinct()
        found: dict[Any, int] = {}
        numbers = [found.setdefault(value, len(found)) for value in self.values]
        return Distinct(list(found), np.asarray(numbers, np.int64))


class Unread(Sequence[Any]):
    """Stands for the cells of a column that is not used; only their number is known."""

    def __init__(self, count: int) -> None:
        self._count = count

    @classmethod
    def column(cls, count: int) -> Listed:
        """Return a column of `count` such cells."""
        return Listed(cls(count), "things")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        raise IndexError("the cells of a column that nobody uses were not read")


Column = Numbers | Listed | Images | Audio
"""What sources give."""
DECODED = (Images, Audio)
"""Columns of files, each of which is decoded when it is read."""


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of equal length.

    Args:
        columns: The columns by name.
        rows: Position of each sample in its source, `(N,)`, for messages.
        name: Name of the source, for messages.
        folder: Folder that paths in the table are relative to.
        within: Folder that such paths must not leave; None for `folder`.
        notes: Lines to report to the user on how it was read.
    """

    columns: Mapping[str, Column]
    rows: Tensor
    name: str
    folder: Path | None = None
    within: Path | None = None
    places: Places | None = None
    """Place of each row of the source; None if the source has no lines."""
    notes: tuple[str, ...] = ()
    """Lines to report to the user, found while reading."""
    kept: KeptTable | None = None
    """Where hashes of all its rows are kept; None if they are not."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> "Table":
        """Return the samples at `rows`."""
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        # Hashes that are kept are of all rows, in the order of the source.
        return replace(self, columns=columns, rows=self.rows[rows], kept=None)

    def place(self, index: int) -> str:
        """Return the place of one sample for messages; rows count from 1, without a header."""
        return self.told.told(int(self.rows[index]))

    def without_columns(self) -> "Table":
        """Return the places alone, for what names samples after the columns are given up."""
        return replace(self, columns={}, kept=None)

    @property
    def told(self) -> Places:
        """The places of the rows of the whole source."""
        return self.places or Places.of(self.name)


def settle(column: str, values: Sequence[Any], places: Places) -> Column:
    """Return raw values as a column of the kind that they all are.

    Args:
        column: Name of the column.
        values: One value per row.
        places: Places of the rows, for messages.

    Raises:
        DataError: a value is missing, or some are numbers and others text.
    """
    if isinstance(values, MappedCells):
        # Arrow counts gaps; a pass over a mapped column would make an object of each cell.
        gap = values.first_without_value
    else:
        gap = next((row for row, value in enumerate(values) if value is None), None)
    if gap is not None:
        others = sum(value is None for value in values) - 1
        raise DataError(
            f"column {column!r} has no value in {places.told(gap)}{and_more(others)}",
            hint="fill in a value, or leave such rows out; {type: fill} among data.transforms "
            "fills empty cells of inputs",
        )
    if isinstance(values, MappedCells):
        # An Arrow file holds texts alone, or numbers of one type and of at most 64 bits.
        if values.is_text:
            return Listed(values, "text")
        is_whole = values.rows is None
        return Numbers(as_tensor(values.as_numbers(), column), is_cells=is_whole)
    if all(isinstance(value, str) for value in values):
        return Listed(values, "text")
    if all(is_number(value) for value in values):
        _refuse_over_64_bits(column, values, places)
        _refuse_truth_values(column, values, places)
        return Numbers(as_tensor(np.asarray(values), column))
    # Read as text, the numbers would be labels or tokens that nobody meant.
    _refuse_a_mixture(column, values, places)
    return _stacked(column, values) or Listed(values, "things")


def as_tensor(values: Any, column: str) -> Tensor:
    """Return an array as a tensor: uint8 unchanged, other whole numbers as int64, others float32.

    Raises:
        DataError: the array holds something other than real numbers.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        values = values.numpy()
    kind = values.dtype.kind
    if values.dtype == np.uint8 or values.dtype == np.int64 or values.dtype == np.float32:
        # torch cannot take negative strides, and warns about read-only memory.
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    # uint64 beyond 2^63 would become negative.
    if kind in "biu" and not (kind == "u" and values.size and values.max() > 2**63 - 1):
        return torch.from_numpy(values.astype(np.int64))
    if kind == "f":
        with np.errstate(over="ignore"):
            return torch.from_numpy(values.astype(np.float32))
    raise DataError(f"column {column!r} holds {values.dtype}, which is not numbers")


def and_more(others: int) -> str:
    """Return the words for the rows beyond the one that a message names; empty for none."""
    return f" and {others:,} more row{'s' if others > 1 else ''}" if others else ""


def is_number(value: Any) -> bool:
    """Tell whether a value is a number of Python or numpy."""
    return isinstance(value, int | float | np.number | np.bool_)


def _refuse_over_64_bits(column: str, values: Sequence[Any], places: Places) -> None:
    """Raise for whole numbers beyond int64, which numpy would turn into objects or floats."""
    for row, value in enumerate(values):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            told = (
                # Python refuses to write a number of more than 4,300 digits.
                str(value) if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"
            )
            raise DataError(f"column {column!r} holds {told} in {places.told(row)}, beyond 64 bits")


def _refuse_truth_values(column: str, values: Sequence[Any], places: Places) -> None:
    """Raise for `true` or `false` among numbers, which numpy would turn into 1 or 0."""
    kinds = {isinstance(value, bool | np.bool_) for value in values}
    if len(kinds) < 2:
        return
    rows = [row for row, value in enumerate(values) if isinstance(value, bool | np.bool_)]
    told = str(bool(values[rows[0]])).lower()
    raise DataError(
        f"column {column!r} holds {told} in {places.told(rows[0])}{and_more(len(rows) - 1)}, and "
        "numbers elsewhere",
        hint="write 1 and 0 if they are meant",
    )


def _refuse_a_mixture(column: str, values: Sequence[Any], places: Places) -> None:
    """Raise if a column has both text and numbers."""
    texts = [row for row, value in enumerate(values) if isinstance(value, str)]
    numbers = [row for row, value in enumerate(values) if is_number(value)]
    if texts and numbers:
        text, number = texts[0], numbers[0]
        raise DataError(
            f"column {column!r} mixes text and numbers: {shown(values[text])} in "
            f"{places.told(text)}, {shown(values[number])} in {places.told(number)}"
        )


def _stacked(column: str, values: Sequence[Any]) -> Numbers | None:
    """Return arrays or lists of one shape as numbers; None for anything else."""
    if not all(isinstance(value, np.ndarray | Tensor | list | tuple) for value in values):
        return None
    try:
        arrays = [np.asarray(value) for value in values]
    # numpy refuses lists of uneven lengths, and tensors with gradients or on another device.
    except (ValueError, TypeError, RuntimeError):
        return None
    if len({array.shape for array in arrays}) > 1 or any(
        a.dtype.kind not in "biuf" for a in arrays
    ):
        return None
    return Numbers(as_tensor(np.stack(arrays), column))
