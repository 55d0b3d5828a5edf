"""Empty cells: which columns may have them, and how a column holds them.

An empty cell is NaN among numbers and an empty text among texts. Only columns that a step
`fill` names may have any; everywhere else they are refused with their row.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.fitted_keys import FillTransform
from finetune.config.messages import shown
from finetune.config.transform_keys import Transform
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.errors import DataError

_ROWS_AT_ONCE = 4096


def filled_columns(config: DataConfig) -> frozenset[str]:
    """Return the columns whose empty cells a step of the config fills."""
    return filled_by(config.transforms or ())


def filled_by(nodes: Iterable[Transform]) -> frozenset[str]:
    """Return the columns whose empty cells some steps fill."""
    return frozenset(n for node in nodes if isinstance(node, FillTransform) for n in node.columns)


def with_open_gaps(table: Table, names: Collection[str]) -> Table:
    """Return a table in which missing values of the columns `names` are empty cells."""
    columns = {
        name: replace(column, values=as_gaps(column.values))
        for name, column in table.columns.items()
        # An empty cell of a csv is an empty text already.
        if name in names and isinstance(column, Listed) and column.kind != "cells"
    }
    return replace(table, columns={**table.columns, **columns}) if columns else table


def as_gaps(values: Sequence[Any]) -> Sequence[Any]:
    """Return raw values with the missing ones as empty text among texts, else as NaN."""
    # Unchanged without gaps, so that cells of a mapped table stay in their file.
    if not any(map(_is_missing, values)):
        return values
    # NaN among texts would be a mixture of texts and numbers, which is refused.
    gap = "" if any(isinstance(value, str) for value in values) else math.nan
    return [gap if _is_missing(value) else value for value in values]


def numbers_of_gaps(column: Listed) -> Numbers | None:
    """Return a column as numbers if all its cells are empty, so that nothing says what it is."""
    if any(cell != "" for cell in column.values):
        return None
    return Numbers(torch.full((len(column),), math.nan))


def _is_missing(value: Any) -> bool:
    """Tell whether a raw value stands for none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def refuse_gaps(
    column: str,
    numbers: Numbers,
    place: Callable[[int], str],
    raw: Column | None = None,
    *,
    allows_empty: bool = False,
    is_target: bool = False,
) -> None:
    """Raise `DataError` for the first row of a column with NaN or an infinite number.

    Args:
        column: Name of the column.
        numbers: The numbers of the column.
        place: Names a row for a message.
        raw: The cells as they were read, quoted in the message if given.
        allows_empty: Whether NaN stands for an empty cell that a later step fills.
        is_target: Whether the column is the target, which no step fills.
    """
    if not numbers.values.is_floating_point():
        return
    rows = _rows_not_finite(numbers.values, allows_empty=allows_empty)
    if not rows:
        return
    values = numbers.values[rows[0]].reshape(-1)
    bad = values.isinf() if allows_empty else ~values.isfinite()
    worst = values[bad][0].item()
    cell = raw[rows[0]] if isinstance(raw, Listed) else None
    found = "has no number" if cell == "" else f"holds {worst}"
    told = f"column {column!r} {found} in {place(rows[0])}{and_more(len(rows) - 1)}"
    if isinstance(cell, str):
        told += f": its cell is {shown(cell) if cell else 'empty, or named by missing'}"
    hint = "fill in a number, or leave such rows out of the file"
    if math.isnan(worst) and not is_target:
        hint += f"; or data.transforms: [{{type: fill, columns: [{column}], with: median}}]"
    raise DataError(told, hint=hint)


def _rows_not_finite(values: Tensor, *, allows_empty: bool) -> list[int]:
    """Return the rows with an infinite number or, unless it is allowed, with NaN."""
    rows: list[int] = []
    # In portions: the mask of a column as large as memory would not fit beside it.
    for start in range(0, len(values), _ROWS_AT_ONCE):
        some = values[start : start + _ROWS_AT_ONCE]
        bad = some.isinf() if allows_empty else ~torch.isfinite(some)
        if not bool(bad.any()):
            continue
        found = bad.reshape(len(some), -1).any(dim=1).nonzero().squeeze(1)
        rows += (found + start).tolist()
    return rows
