"""Layout of a store: its outputs, its files, and `meta.json`, which records both."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from finetune.disk import reason_of
from finetune.errors import FinetuneError

FORMAT_VERSION = 1
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64")
_IN_FILES = {
    name: np.dtype("int16" if name == "bfloat16" else name)
    for name in (*_INTEGERS, *_FLOATS, "complex64")
}
"""numpy dtype of the values in files. numpy has no bfloat16: its bits are kept as int16."""

Block = NDArray[Any]
"""Units of a file, (P, ...)."""
Rows = NDArray[np.int64]
"""Numbers of rows, or of units."""
Labels = Mapping[str, str | int | float | bool]


class StoreError(FinetuneError):
    """Rows cannot be stored. Training can go on without a store."""


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Turn what the system answers into a `StoreError` that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(reason_of(error), where=str(path)) from error


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Shape and dtype of one stored output for one sample."""

    shape: tuple[int, ...]
    """Without the batch axis. If `ragged`, the first axis has the largest expected length."""
    dtype: str
    """Of the values handed out, such as `float32`."""
    ragged: bool = False
    """Whether the first axis (tokens) has another length for each sample."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Fixed-size element of a file: dtype and shape. A file is an array of units."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of one unit."""
        return self.dtype.itemsize * math.prod(self.shape)

    def zeros(self, count: int) -> Block:
        """Return `count` units of zeros."""
        return np.zeros((count, *self.shape), self.dtype)


CHECKSUM = Unit(np.dtype("uint64"), ())
PLACE = Unit(np.dtype("int64"), (2,))
"""First unit of a row in ragged files, and its number of units."""


@dataclass(frozen=True, slots=True)
class Column:
    """One output in its file: a unit per sample, or per token if ragged."""

    name: str
    spec: RowSpec
    stored: str
    """The dtype in the file."""

    @property
    def unit(self) -> Unit:
        """The unit of its file: a sample, or a token if ragged."""
        shape = self.spec.shape[1:] if self.spec.ragged else self.spec.shape
        return Unit(_IN_FILES[self.stored], shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of the longest expected sample."""
        return self.unit.num_bytes * (self.spec.shape[0] if self.spec.ragged else 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """All outputs of a store, and its number of rows."""

    columns: tuple[Column, ...]
    num_rows: int

    @classmethod
    def of(cls, specs: Mapping[str, RowSpec], num_rows: int, store_dtype: str | None) -> Self:
        """Lay out `specs`; floating point is stored as `store_dtype` unless that is None.

        Raises:
            StoreError: an output has a dtype or a shape that cannot be kept.
        """
        if not specs:
            raise StoreError("no output to store")
        for name, spec in specs.items():
            if spec.dtype not in _IN_FILES:
                raise StoreError(f"cannot store {name!r} of {spec.dtype}")
            if _is_empty(spec):
                raise StoreError(f"cannot store {name!r} of shape {spec.shape}")
        if store_dtype is not None and store_dtype not in _FLOATS:
            raise StoreError(f"cannot store as {store_dtype!r}", hint=f"one of {_FLOATS}")
        columns = tuple(
            Column(name, spec, store_dtype if store_dtype and spec.dtype in _FLOATS else spec.dtype)
            for name, spec in specs.items()
        )
        return cls(columns, num_rows)

    @property
    def ragged(self) -> bool:
        """Whether samples have lengths of their own in any output."""
        return any(column.spec.ragged for column in self.columns)

    @property
    def row_bytes(self) -> int:
        """Size of one sample over all outputs, of the longest that is expected."""
        return sum(column.row_bytes for column in self.columns)

    @property
    def size_bytes(self) -> int:
        """Size when every row is there, each as long as the longest that is expected."""
        in_books = sum(unit.num_bytes for unit in self.index_files().values())
        return self.num_rows * (self.row_bytes + in_books)

    def index_files(self) -> dict[str, Unit]:
        """Return the unit of each index file by its name, see `row_index.py`.

        The file of checksums is named `seals`, as in stores of earlier versions.
        """
        return {"seals": CHECKSUM} | ({"index": PLACE} if self.ragged else {})

    def files(self) -> dict[str, int]:
        """Return the size of every file when the store is new. Ragged ones grow by what comes."""
        sizes = {name: unit.num_bytes * self.num_rows for name, unit in self.index_files().items()}
        for number, column in enumerate(self.columns):
            # The file has its full size from the start: it is sparse, and a truncated file is
            # noticed.
            fixed = 0 if column.spec.ragged else column.unit.num_bytes * self.num_rows
            sizes[rows_file(number)] = fixed
        return sizes


@dataclass(frozen=True, slots=True)
class Meta:
    """What `meta.json` tells of a store."""

    key: str
    torch: str
    """Version that computed the rows: another one may round differently."""
    layout: Layout
    facts: Labels
    """What the key was made of, for people."""
    created: str
    """ISO date and time, UTC."""

    def difference(self, wanted: "Meta") -> str | None:
        """Return why rows kept under this are not those that are wanted, or None if they are."""
        # Kernels of another version of torch may round differently.
        if self.torch != wanted.torch:
            return f"made by torch {self.torch}, this is {wanted.torch}"
        if (self.key, self.layout) != (wanted.key, wanted.layout):
            return "holds other outputs than its key stands for"
        return None

    def to_json(self) -> str:
        """Return the document."""
        columns = [
            {"name": column.name, **asdict(column.spec), "stored": column.stored}
            for column in self.layout.columns
        ]
        document = {
            "version": FORMAT_VERSION,
            "key": self.key,
            "torch": self.torch,
            "created": self.created,
            "num_rows": self.layout.num_rows,
            "columns": columns,
            "facts": dict(self.facts),
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the document.

        Raises:
            StoreError: it is not one, or one of another release.
        """
        try:
            document = json.loads(text)
            # Rows are never converted: computing them again is safer, and hardly slower.
            if document["version"] != FORMAT_VERSION:
                raise StoreError(f"format version {document['version']!r}, not {FORMAT_VERSION}")
            layout = Layout(tuple(map(_column, document["columns"])), _count(document["num_rows"]))
            words = [document[word] for word in ("key", "torch", "created")]
            if not all(isinstance(word, str) for word in words):
                raise TypeError
            return cls(words[0], words[1], layout, dict(document["facts"]), words[2])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError("meta.json cannot be read") from error


class Spans(NamedTuple):
    """Positions of rows: the row number, or for ragged outputs a run of units from `starts` on."""

    rows: Rows
    """(B,)"""
    starts: Rows
    """First unit of each row in every ragged file, (B,)."""
    lengths: Rows
    """Number of units of each row in ragged files, (B,)."""

    def places(self, column: Column) -> Rows:
        """Return the indices of these rows' units, (B,), or (T,) if `column` is ragged."""
        if not column.spec.ragged:
            return self.rows
        before = np.cumsum(self.lengths) - self.lengths
        places: Rows = np.arange(self.lengths.sum())
        places += np.repeat(self.starts - before, self.lengths)
        return places

    def padded_places(self, length: int) -> Rows:
        """Return `length` unit indices for each row, (B, L); the last one is repeated as padding.

        Repeating it is cheap: it was read just before. The caller overwrites the padding.
        """
        last = np.maximum(self.lengths - 1, 0)
        places: Rows = self.starts[:, None] + np.minimum(np.arange(length), last[:, None])
        return places

    def end(self, column: Column) -> int:
        """Return the first unit behind these rows."""
        last = self.starts + self.lengths if column.spec.ragged else self.rows + 1
        return int(last.max(initial=0))

    def some(self, which: NDArray[np.bool_] | Rows) -> "Spans":
        """Return the spans of some of the rows."""
        return Spans(self.rows[which], self.starts[which], self.lengths[which])


def rows_file(number: int) -> str:
    """Return the file name for the rows of the output at a position of the layout."""
    # Not by the name of the output, which may hold what a file name must not.
    return f"rows-{number}"


def _is_empty(spec: RowSpec) -> bool:
    return 0 in spec.shape or (spec.ragged and not spec.shape)


def _column(entry: Any) -> Column:
    shape = tuple(_count(size) for size in entry["shape"])
    spec = RowSpec(shape, entry["dtype"], entry["ragged"])
    column = Column(str(entry["name"]), spec, entry["stored"])
    if not {spec.dtype, column.stored} <= _IN_FILES.keys():
        raise ValueError(column)
    if not isinstance(spec.ragged, bool) or _is_empty(spec):
        raise ValueError(spec)
    return column


def _count(value: Any) -> int:
    # Not `isinstance`, which would accept JSON's true as 1.
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value
