"""Hashes of the rows of a table: made once for a table in the cache, else at every start."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from finetune.data.hashes.contents import HASH_BYTES
from finetune.data.identify.identity import RowHashes, hash_rows
from finetune.data.readers.mapped import MappedCells
from finetune.data.sources.kept_table import KeptTable
from finetune.data.table import Column, Listed, Numbers, Table
from finetune.store.directory import key_of

_VERSION = 1
"""Of `hash_rows`; a higher one makes all hashes anew."""


def row_hashes(table: Table, inputs: Sequence[str], read: Mapping[str, Column]) -> RowHashes:
    """Return hashes of the raw cells of every row; see `hash_rows`.

    Args:
        table: The columns in use, all rows of the source.
        inputs: Names of the input columns.
        read: The inputs as numbers or texts.
    """
    if table.kept is None or not all(map(_is_of_cells, table.columns.values())):
        return hash_rows(table.columns, inputs, read)
    key = key_of(
        {
            "table": table.kept.contents,
            "columns": [[name, _told(column)] for name, column in table.columns.items()],
            "inputs": [[name, _told(read[name])] for name in inputs],
            "version": _VERSION,
        }
    )
    if (found := _kept(table.kept, key, len(table))) is not None:
        return found
    made = hash_rows(table.columns, inputs, read)
    parts = (made.inputs.numpy(), made.rows.astype("<u8"), made.read.astype("<u8"))
    written = json.dumps(dict(made.columns)).encode() + b"\n"
    table.kept.put(key, b"".join([written, *(part.tobytes() for part in parts)]))
    return made


def _kept(table: KeptTable, key: str, count: int) -> RowHashes | None:
    """Return hashes that were made earlier; None if there are none."""
    columns, _, numbers = (table.get(key) or b"").partition(b"\n")
    # Also where nothing is kept: then there are no bytes at all.
    if len(numbers) != count * (HASH_BYTES + 8 + 8):
        return None
    # A copy, which may be written to: torch warns of memory that may not.
    flat = np.frombuffer(bytearray(numbers), np.uint8)
    inputs = torch.from_numpy(flat[: count * HASH_BYTES].reshape(count, HASH_BYTES))
    rows, read = flat[count * HASH_BYTES :].view("<u8").reshape(2, count)
    return RowHashes(inputs, rows, read, json.loads(columns))


def _is_of_cells(column: Column) -> bool:
    """Tell whether a column holds the cells of one column of its table and nothing else."""
    is_mapped = isinstance(column, Listed) and isinstance(column.values, MappedCells)
    return is_mapped or (isinstance(column, Numbers) and column.is_cells)


def _told(column: Column) -> str:
    """Return as what the cells of a column are read."""
    if isinstance(column, Numbers):
        return f"numbers {column.values.dtype}"
    return column.kind if isinstance(column, Listed) else "images"
