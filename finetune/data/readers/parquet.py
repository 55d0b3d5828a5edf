"""Read rows of a Parquet file by columns: those that are not wanted are not converted."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.chunks import ROWS_AT_ONCE, Chunk, Reading
from finetune.errors import DataError
from finetune.models.shapes import first_line

CELL_FAULTS = (ValueError, ArithmeticError, TypeError, LookupError, NotImplementedError)
"""Exceptions of Python when cells become Python values: bytes that are not text, odd dates, types
that Arrow cannot convert."""


def is_made_by_datasets(file: BinaryIO, name: str) -> bool:
    """Tell whether a Parquet file was written by the `datasets` library, by its metadata.

    Raises:
        DataError: it cannot be read.
    """
    metadata = _opened(file, name).schema_arrow.metadata or {}
    file.seek(0)
    # The library describes its features, such as images and class names, under this key.
    return b"huggingface" in metadata


def parquet_chunks(file: BinaryIO, reading: Reading) -> Iterator[Chunk]:
    """Yield the wanted columns of a Parquet file in chunks.

    Raises:
        DataError: it cannot be read, or has two columns of a wanted name.
    """
    import pyarrow  # takes a third of a second, which other runs need not spend

    opened = _opened(file, reading.name)
    names = list(opened.schema_arrow.names)
    wanted = _wanted(names, reading)
    known = tuple(dict.fromkeys(names))
    if not wanted:
        yield Chunk({}, known, (), opened.metadata.num_rows)
        return
    try:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
            columns = {name: _cells(batch, name, reading) for name in wanted}
            yield Chunk(columns, known, (), batch.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise cannot_read(reading.name, error) from error


def cannot_read(name: str, error: Exception) -> DataError:
    """Return the error for a Parquet file that Arrow refuses."""
    return DataError(f"cannot read {name!r}: {first_line(error)}")


def cannot_read_column(column: str, where: str, error: Exception) -> DataError:
    """Return the error for a column whose cells do not become Python values."""
    return DataError(f"column {column!r} cannot be read: {first_line(error)}", where=where)


def _opened(file: BinaryIO, name: str) -> Any:
    """Return an open Parquet file; only its metadata is read."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    # Arrow decodes the names of columns without checking that they are UTF-8.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise cannot_read(name, error) from error


def _wanted(names: list[str], reading: Reading) -> list[str]:
    """Return the columns to read, in the order of the file."""
    # Arrow reads both under one name, and which is meant nobody can tell.
    twice = [name for name in names if names.count(name) > 1]
    if reading.wanted is None:
        return [name for name in names if name not in twice]
    if wrong := next((name for name in twice if reading.needs(name)), None):
        raise DataError(f"two columns are named {wrong!r}", where=reading.name)
    return [name for name in names if reading.wants(name) and name not in twice]


def _cells(batch: Any, name: str, reading: Reading) -> list[Any]:
    """Return the cells of a column as Python values."""
    import pyarrow

    try:
        column = batch.column(name)
        # As Python's `Decimal` no column would be numbers; what is computed is float anyway.
        if pyarrow.types.is_decimal(column.type):
            column = column.cast(pyarrow.float64())
        cells = column.to_pylist()
        return [reading.filled(cell) for cell in cells] if reading.missing_in(name) else cells
    except CELL_FAULTS as error:
        raise cannot_read_column(name, reading.name, error) from error
