"""Note on numbers that stand for something else, or that float32 cannot tell apart."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.fitted_keys import CategoriesTransform, StandardizeTransform
from finetune.config.transform_keys import Transform, named_columns
from finetune.data.cells import reads_as_number
from finetune.data.readers.mapped import MappedCells
from finetune.data.table import Column, Listed, Numbers, is_number

_SIGNS = (-99999, -9999, -999, -99, 999, 9999, 99999)
"""Numbers that programs write where there is none."""
_LOOKED_AT = 100_000
"""Number of rows of a column that are looked at."""
_EXACT = 2**24
"""Whole numbers up to this are exact in float32."""
_MERGED = 0.1
"""Share of different numbers that become equal to others from which on a note is given. Of numbers
with many digits some few are equal to others but for the last ones."""


def notes_on_numbers(
    columns: Mapping[str, Column],
    names: Iterable[str],
    config: DataConfig,
    on_fractions: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Return notes on columns of numbers in which some are signs, or rounded to one.

    Args:
        columns: Columns of the training part.
        names: Names of the inputs.
        config: `data:` of the config.
        on_fractions: What `notes_on_fractions` says of each column, if it is numbers.
    """
    notes, exact = [], _scaled_exactly(config)
    for name in names:
        column = columns[name]
        if not isinstance(column, Numbers) or column.values.ndim != 1 or not len(column):
            continue
        if (values := column.values[:_LOOKED_AT]).dtype == torch.bool:
            continue
        notes += _on_signs(name, values)
        if values.is_floating_point():
            notes += on_fractions.get(name, ())
        elif name not in exact:
            notes += _on_rounding(name, values)
    return notes


def _scaled_exactly(config: DataConfig) -> set[str]:
    """Return the columns whose first step takes whole numbers with all their digits."""
    first: dict[str, Transform] = {}
    for node in config.transforms or ():
        for name in named_columns(node) or ():
            first.setdefault(name, node)
    exact = StandardizeTransform | CategoriesTransform
    return {name for name, node in first.items() if isinstance(node, exact)}


def notes_on_fractions(name: str, raw: Column) -> list[str]:
    """Return a note if different numbers with fractions become one as they are read; or nothing.

    Args:
        name: Name of the column.
        raw: The column as its source has it.
    """
    # Code of the user's own may make each value when it is read, and fail there.
    if not isinstance(raw, Listed) or not isinstance(raw.values, list | MappedCells):
        return []
    # Texts are not looked through: the first one tells.
    if _as_double(next(filter(_is_given, raw.values), None)) is None:
        return []
    cells = dict.fromkeys(islice(map(_as_double, raw.values), _LOOKED_AT))
    numbers = np.array([number for number in cells if number is not None], np.float64)
    # Whole numbers without a gap between them keep all their digits here.
    if not len(numbers) or (None not in cells and bool((numbers % 1 == 0).all())):
        return []
    with np.errstate(over="ignore"):
        after = len(np.unique(numbers.astype(np.float32)))
    is_told = len(numbers) - after > _MERGED * len(numbers)
    return _rounded(name, len(numbers), after) if is_told else []


def _is_given(cell: object) -> bool:
    """Tell whether a cell is a number, or a text that may be one."""
    return cell != "" if isinstance(cell, str) else is_number(cell)


def _as_double(cell: object) -> float | None:
    """Return the number in a cell; None without one."""
    is_one = reads_as_number(cell) if isinstance(cell, str) else is_number(cell)
    try:
        number = float(cell) if is_one else np.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond doubles; told where the column is settled
        return None
    return number if np.isfinite(number) else None


def _on_signs(name: str, values: Tensor) -> list[str]:
    """Return a note on a number that is far from all others and reads like a missing value."""
    for sign in _SIGNS:
        is_sign = values == sign
        count, others = int(is_sign.sum()), values[~is_sign & ~values.isnan()].double()
        # Once it may be a number like any other; where most cells hold it, it is the usual one.
        if count < 2 or len(others) < count:
            continue
        low, high = others.min().item(), others.max().item()
        gap = low - sign if sign < 0 else sign - high
        # By the range of all others: -999 between -500 and 800 is an ordinary number.
        if gap > 2 * (high - low) > 0:
            return [
                f"column {name!r} holds {sign} in {count:,} of {len(values):,} rows, all others "
                f'are {low:g} to {high:g}; missing: ["{sign}"], beside the path, if it stands for '
                "no value"
            ]
    return []


def _on_rounding(name: str, values: Tensor) -> list[str]:
    """Return a note if different whole numbers become one in float32."""
    if int(values.abs().max()) <= _EXACT:
        return []
    # Counted, since large numbers that still differ after rounding do no harm.
    before, after = len(values.unique()), len(values.float().unique())
    return [] if after == before else _rounded(name, before, after)


def _rounded(name: str, before: int, after: int) -> list[str]:
    """Return the note on a column whose different numbers become fewer."""
    return [
        f"column {name!r}: {before:,} different numbers become {after:,} in float32, which holds 7 "
        "digits: subtract what all have in common, or leave out a column of numbers that name rows"
    ]
