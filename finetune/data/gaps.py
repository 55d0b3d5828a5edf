"""Empty cells: which columns may have them, and how a column holds them.

An empty cell is NaN among numbers and an empty text among texts. Only columns that a step
`fill` names may have any; everywhere else they are refused with their row.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from finetune.config.data import DataConfig
from finetune.config.fitted_keys import FillTransform
from finetune.config.transform_keys import Transform
from finetune.data.table import Listed, Numbers, Table


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
    if not any(map(_is_missing, values)):
        return values
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
