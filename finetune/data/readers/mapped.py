"""Cells of a table that lies in a memory-mapped Arrow file: no cell is an object before it is read.

Letters: N cells of a column.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 16 << 20
"""Tables of fewer bytes are read into lists at every start, which takes about a second."""
TEXT_TYPES = ("string", "large_string")
"""Names of Arrow's types of text."""
_AT_ONCE = 4096

Positions = NDArray[np.int64]


@runtime_checkable
class ReadTogether(Protocol):
    """Values that are quicker read several at once than one by one."""

    def at(self, positions: Positions) -> list[Any]:
        """Return the values at some positions, in this order."""
        ...


class Distinct(NamedTuple):
    """The different values of a column, and which of them each cell has."""

    values: list[Any]
    """In order of their first cells."""
    numbers: Positions
    """Position in `values` of each cell, (N,)."""


@dataclass(frozen=True, slots=True)
class MappedCells(Sequence[Any]):
    """Cells of one column, or some of them.

    Args:
        chunks: The Arrow arrays of the whole column, one after another.
        starts: Number of cells before each array.
        rows: Positions of these cells in the whole column, `(N,)`; None for all.
    """

    chunks: tuple[Any, ...]
    starts: Positions
    rows: Positions | None = None

    def __len__(self) -> int:
        return self._size if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.at(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(np.asarray([index % len(self)]))[0]

    def __iter__(self) -> Iterator[Any]:
        # A few at a time, so that a pass never holds all cells as objects.
        for portion in self.portions():
            yield from portion

    def portions(self) -> Iterator[list[Any]]:
        """Yield all cells in lists of some thousand."""
        for start in range(0, len(self), _AT_ONCE):
            yield self.at(np.arange(start, min(start + _AT_ONCE, len(self))))

    def take(self, rows: Positions) -> "MappedCells":
        """Return the cells at `rows`; none is read."""
        return MappedCells(self.chunks, self.starts, rows if self.rows is None else self.rows[rows])

    @property
    def is_text(self) -> bool:
        """Whether all cells are texts, or have no value."""
        return str(self._type) in TEXT_TYPES

    @property
    def first_without_value(self) -> int | None:
        """Position of the first cell without a value, or None."""
        # Arrow counts them by bits, without making an object of any cell.
        if not any(chunk.null_count for chunk in self.chunks):
            return None
        return next((row for row, cell in enumerate(self) if cell is None), None)

    def as_numbers(self) -> NDArray[Any]:
        """Return a column of numbers without gaps as an array, `(N,)`."""
        whole = np.concatenate([_numbers_in(chunk) for chunk in self.chunks])
        return whole if self.rows is None else whole[self.rows]

    def distinct(self) -> Distinct:
        """Return the different values in order of first appearance, and each cell's value.

        The value of a cell is given as its position among the different values.
        """
        import pyarrow  # takes a third of a second, which runs on small tables need not spend

        encoded = pyarrow.chunked_array(self.chunks).dictionary_encode().combine_chunks()
        if isinstance(encoded, pyarrow.ChunkedArray):
            encoded = pyarrow.concat_arrays(encoded.chunks)
        numbers = _numbers_in(encoded.indices).astype(np.int64)
        numbers = numbers if self.rows is None else numbers[self.rows]
        # In order of first cells, and only those that these rows have.
        used, first, again = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        values = encoded.dictionary.take(arrow_of(used[order])).to_pylist()
        return Distinct(values, rank[again.reshape(-1)])

    @property
    def _size(self) -> int:
        return int(self.starts[-1]) + len(self.chunks[-1]) if self.chunks else 0

    @property
    def _type(self) -> Any:
        return self.chunks[0].type if self.chunks else None

    def at(self, positions: Positions) -> list[Any]:
        """Return the cells at some positions as Python values."""
        rows = positions if self.rows is None else self.rows[positions]
        places = np.searchsorted(self.starts, rows, side="right") - 1
        cells: list[Any] = []
        # Cells of one array that follow each other are read in one call.
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(places)) + 1):
            if len(run):
                place = int(places[run[0]])
                cells += self._of_chunk(place, rows[run] - self.starts[place])
        return cells

    def _of_chunk(self, place: int, rows: Positions) -> list[Any]:
        """Return some cells of one array."""
        chunk, first, count = self.chunks[place], int(rows[0]), len(rows)
        if count == 1:
            return [chunk[first].as_py()]
        # Rows in a run, as a pass over all cells reads them, are a slice, which copies nothing.
        if int(rows[-1]) - first == count - 1 and bool((np.diff(rows) == 1).all()):
            return list(chunk.slice(first, count).to_pylist())
        return list(chunk.take(arrow_of(rows)).to_pylist())


def arrow_of(
    numbers: NDArray[Any], has_value: NDArray[np.bool_] | None = None, texts: bytes | None = None
) -> Any:
    """Return an Arrow array; `pyarrow.array` would load pandas, which takes half a second.

    Args:
        numbers: Whole numbers, floats or booleans, `(N,)`; with `texts` the place in them where
            each text begins, and their end, `(N + 1,)`.
        has_value: Which cells have a value, `(N,)`; None if all have one.
        texts: All texts, end to end in UTF-8.
    """
    import pyarrow

    kind = pyarrow.from_numpy_dtype(numbers.dtype) if texts is None else pyarrow.large_string()
    count = len(numbers) - (texts is not None)
    bits = [None if has_value is None else np.packbits(has_value, bitorder="little")]
    bits.append(np.packbits(numbers, bitorder="little") if numbers.dtype == bool else numbers)
    buffers = [None if part is None else pyarrow.py_buffer(part) for part in bits]
    if texts is not None:
        buffers.append(pyarrow.py_buffer(texts))
    return pyarrow.Array.from_buffers(kind, count, buffers)


def _numbers_in(array: Any) -> NDArray[Any]:
    """Return the numbers of an Arrow array; what stands for cells without a value is arbitrary."""
    values = array.buffers()[1]
    if str(array.type) == "bool":
        flat = np.unpackbits(np.frombuffer(values, np.uint8), bitorder="little").astype(bool)
    else:
        flat = np.frombuffer(values, array.type.to_pandas_dtype())
    # An array that was cut out of another one shares the buffers of the whole.
    return flat[array.offset : array.offset + len(array)]


def mapped_columns(file: BinaryIO, *, is_checked: bool = False) -> dict[str, MappedCells]:
    """Return the columns of an Arrow file, mapped into memory.

    Args:
        file: A file that `ArrowFile` has written; it may be closed afterwards.
        is_checked: Whether to look at every cell: places in a damaged file may lie outside of it.

    Raises:
        ValueError: it is no such file.
    """
    import pyarrow

    try:
        # Python's map keeps a copy of the descriptor, and with it the lock on a table in use.
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(pages)))
        table = reader.read_all()
        if is_checked:
            table.validate(full=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    return {name: mapped_cells(table.column(name)) for name in table.column_names}


def mapped_cells(column: Any) -> MappedCells:
    """Return the cells of an Arrow column, none of which is read."""
    chunks = tuple(chunk for chunk in column.chunks if len(chunk))
    lengths = np.asarray([len(chunk) for chunk in chunks], np.int64)
    return MappedCells(chunks, np.cumsum(lengths) - lengths)
