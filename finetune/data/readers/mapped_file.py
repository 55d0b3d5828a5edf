"""Write chunks of a table to an Arrow file, which `mapped.py` reads from without loading it."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from finetune.data.readers.chunks import Chunk
from finetune.data.readers.mapped import MappedCells, arrow_of, mapped_columns

LINES = "\0lines"
"""Column of the lines at which rows begin."""
# `large_string` has places of 64 bits: with `string` an array ends at 2 GiB of text.
_TYPES: Mapping[type, str] = {str: "large_string", int: "int64", float: "float64", bool: "bool"}


class NotMappedError(Exception):
    """A table holds something that the columns of an Arrow file do not, such as lists."""


class ArrowFile:
    """An Arrow file while it is written, one record batch a chunk.

    A column holds texts, whole numbers, floats, or true and false, by its first chunk; a cell may
    have no value.

    Args:
        file: An empty file, which stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._types: dict[str, type] = {}
        self._writer: Any = None

    def write(self, chunk: Chunk) -> None:
        """Append a chunk of rows.

        Raises:
            NotMappedError: a column holds something else, another type than before, or is new.
            OSError: the file cannot be written.
        """
        import pyarrow  # takes a third of a second, which runs on small tables need not spend

        if not chunk.count:
            return
        if self._writer is None:
            self._types = {name: _type_of(name, cells) for name, cells in chunk.columns.items()}
            fields = [(name, pyarrow.type_for_alias(_TYPES[t])) for name, t in self._types.items()]
            schema = pyarrow.schema([*fields, (LINES, pyarrow.uint64())])
            self._writer = pyarrow.ipc.new_file(self._file, schema)
        arrays = [self._array(name, chunk) for name in self._types]
        if new := chunk.columns.keys() - self._types.keys():
            raise NotMappedError(f"its first rows have no column {min(new)!r}")
        lines = arrow_of(np.asarray(chunk.lines or [0] * chunk.count, np.uint64))
        names = [*self._types, LINES]
        self._writer.write_batch(pyarrow.record_batch([*arrays, lines], names=names))

    def columns(self) -> dict[str, MappedCells]:
        """Finish the file; return its columns, mapped into memory.

        Raises:
            NotMappedError: no row was written.
            OSError: the file cannot be written.
        """
        if self._writer is None:
            raise NotMappedError("it has no rows")
        # Writes the footer, without which Arrow does not open the file.
        self._writer.close()
        self._file.flush()
        found = mapped_columns(self._file)
        del found[LINES]
        return found

    def _array(self, name: str, chunk: Chunk) -> Any:
        """Return the cells of a column as an Arrow array."""
        cells: Sequence[Any] = chunk.columns.get(name) or [None] * chunk.count
        known = self._types[name]
        # Arrow would turn 2.0 into 2, and true into 1: messages and hashes would see other cells.
        if other := next((t for t in set(map(type, cells)) if t not in (known, type(None))), None):
            raise NotMappedError(f"column {name!r} holds {known.__name__} and {other.__name__}")
        try:
            return _arrow_of(cells, known)
        except (UnicodeError, OverflowError) as error:
            # JSON may hold half of a surrogate pair, or a number beyond 64 bits.
            reason = str(error).partition("\n")[0][:120]
            raise NotMappedError(f"column {name!r}: {reason}") from error


def _arrow_of(cells: Sequence[Any], kind: type) -> Any:
    """Return cells of one type as an Arrow array."""
    has_value = np.asarray([cell is not None for cell in cells])
    is_full = None if bool(has_value.all()) else has_value
    if kind is str:
        encoded = [cell.encode() if cell is not None else b"" for cell in cells]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return arrow_of(ends, is_full, b"".join(encoded))
    # numpy knows no gaps: a zero stands there, which the bits of `has_value` hide.
    filled = [kind() if cell is None else cell for cell in cells]
    return arrow_of(np.asarray(filled, _TYPES[kind]), is_full)


def _type_of(name: str, cells: Sequence[Any]) -> type:
    """Return the type of a column by its first cell with a value."""
    found = next((type(cell) for cell in cells if cell is not None), type(None))
    if found not in _TYPES:
        raise NotMappedError(f"column {name!r} holds {found.__name__} in its first rows")
    if name == LINES:
        raise NotMappedError(f"a column is named {name!r}")
    return found
