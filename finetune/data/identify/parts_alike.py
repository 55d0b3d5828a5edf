"""Compare what the network gets of other data with what it gets of the training part."""

from collections.abc import Mapping
from typing import Any

import torch

from finetune.data.batches import Samples
from finetune.data.table import Numbers
from finetune.errors import DataError
from finetune.models.declared import TensorSpec

_IMAGE_AXES = 2
"""Least axes of an image; of such columns a network may take other sizes."""


def as_trained(columns: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Return finished columns, whole numbers as float32 where training has numbers with fractions.

    A part whose numbers happen to be whole must not reach the network as another type.

    Args:
        columns: Columns of a part after all steps.
        specs: Shape and dtype of the columns of training; empty to change nothing.
    """
    return {
        name: Numbers(column.values.float())
        if isinstance(column, Numbers)
        # Bytes are images that become 0..1 when they are fetched.
        and column.values.dtype != torch.uint8
        and _is_float(specs.get(name))
        else column
        for name, column in columns.items()
    }


def unlike_training(
    specs: Mapping[str, TensorSpec], other: Samples, *, may_differ: bool = False
) -> list[str]:
    """Return notes on images of another shape than those of training.

    One sample is compared: those of a part are alike.

    Args:
        specs: Shape and dtype of the columns of training.
        other: Another part, or samples that a trained network is given.
        may_differ: Whether the network takes images of different sizes, so that none is told.

    Raises:
        DataError: numbers of a column are of another shape or type.
    """
    notes = []
    has_tokens = other.extent(torch.tensor([other.first_row])) is not None
    for name, spec in specs.items():
        found = other.specs.get(name)
        # A padded column is as wide as its batch.
        if found is None or (has_tokens and found.dtype == "int64" and len(found.shape) == 1):
            continue
        if min(len(found.shape), len(spec.shape)) < _IMAGE_AXES or found.dtype != spec.dtype:
            _refuse(name, spec, found, other)
        elif found.shape != spec.shape and not may_differ:
            notes.append(
                f"column {name!r}: training takes samples of {spec.shape}, "
                f"{_part(other) or 'this data'} has {found.shape}"
            )
    return notes


def _refuse(name: str, spec: TensorSpec, found: TensorSpec, other: Samples) -> None:
    """Raise `DataError` if a column differs from that of training."""
    if found == spec:
        return
    row = "" if other.place is None else other.place(other.first_row)
    where = ", ".join(text for text in (_part(other), row) if text)
    of_type = found.shape == spec.shape
    here, there = (one.dtype if of_type else _size(one) for one in (found, spec))
    raise DataError(
        f"column {name!r} has {here}{where and f' in {where}'}, and {there} in training",
        hint="data of all parts, and data to predict, has the form of that of training",
        key=("data", other.name or "inputs"),
    )


def _part(samples: Samples) -> str:
    """Return the name of a part in words; empty for samples that are no part of a run."""
    return f"the {samples.name} part" if samples.name else ""


def _size(spec: TensorSpec) -> str:
    """Return how many numbers a sample has, as text."""
    if not spec.shape:
        return "one number a sample"
    if len(spec.shape) == 1:
        return f"{spec.shape[0]:,} numbers a sample"
    return f"samples of {spec.shape}"


def _is_float(spec: TensorSpec | None) -> bool:
    """Tell whether training has numbers with fractions in a column."""
    return spec is not None and spec.dtype == "float32"
