"""Note on numbers that stand for something else, or that float32 cannot tell apart."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from finetune.data.table import Column, Numbers

_SIGNS = (-99999, -9999, -999, -99, 999, 9999, 99999)
"""Numbers that programs write where there is none."""
_LOOKED_AT = 100_000
"""Number of rows of a column that are looked at."""
_EXACT = 2**24
"""Whole numbers up to this are exact in float32."""


def notes_on_numbers(columns: Mapping[str, Column], names: Iterable[str]) -> list[str]:
    """Return notes on columns of numbers in which some are signs, or rounded to one.

    Args:
        columns: Columns of the training part.
        names: Names of the inputs.
    """
    notes = []
    for name in names:
        column = columns[name]
        if not isinstance(column, Numbers) or column.values.ndim != 1 or not len(column):
            continue
        if (values := column.values[:_LOOKED_AT]).dtype == torch.bool:
            continue
        notes += [*_on_signs(name, values), *_on_rounding(name, values)]
    return notes


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
    if values.is_floating_point() or int(values.abs().max()) <= _EXACT:
        return []
    # Counted, since large numbers that still differ after rounding do no harm.
    before, after = len(values.unique()), len(values.float().unique())
    if after == before:
        return []
    return [
        f"column {name!r}: {before:,} different numbers become {after:,} in float32, which holds 7 "
        "digits: subtract what all have in common, or leave out a column of numbers that name rows"
    ]
