"""Join samples into whole columns, in memory or in a file.

Letters: N samples.
"""

import tempfile
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.kept_samples import reserve
from finetune.data.ragged import Ragged, Tokens
from finetune.data.samples import Columns, Prepared, Sample
from finetune.data.table import Listed, Numbers
from finetune.errors import DataError

IN_MEMORY_BYTES = 2 * 1024**3
"""Larger columns are kept in a file instead of in memory."""


class UnequalShapesError(DataError):
    """Samples of one column differ in shape, so that no batch can hold them."""


def build_columns(
    samples: Iterable[Sample], count: int, place: Callable[[int], str] | None = None
) -> Columns:
    """Return `count` samples as columns: tensors stacked, sequences laid end to end.

    Args:
        samples: The samples.
        count: How many there are.
        place: Names a sample for a message, by its position; None if it cannot be named.

    Raises:
        UnequalShapesError: tensors of one column differ in shape.
        DataError: samples differ in their columns, or in the kind of value in one.
    """
    stores: dict[str, Tensor | list[Any]] = {}
    for position, sample in enumerate(samples):
        if position == 0:
            # Allocated once: a list of tensors and its stack would take twice the memory.
            stores = {name: _store(value, count) for name, value in sample.items()}
        # The user's own transform may forget a column in some samples.
        if sample.keys() != stores.keys():
            raise DataError(f"samples of different columns: {list(stores)} and {list(sample)}")
        for name, value in sample.items():
            try:
                _put(stores[name], position, name, value)
            except UnequalShapesError as error:
                if place is not None:
                    error.message += f", in {place(0)} and {place(position)}"
                raise
    return {name: _column(store) for name, store in stores.items()}


def _store(value: Any, count: int) -> Tensor | list[Any]:
    """Return an empty container for a column whose first value is given."""
    return allocate((count, *value.shape), value.dtype) if isinstance(value, Tensor) else []


def _put(store: Tensor | list[Any], position: int, name: str, value: Any) -> None:
    """Put a value into a container; raise if it does not match the first one."""
    if isinstance(store, list):
        store.append(value)
        return
    if not isinstance(value, Tensor) or value.dtype != store.dtype:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"column {name!r} holds {store.dtype} in one sample, {found} in another")
    if value.shape != store.shape[1:]:
        raise UnequalShapesError(
            f"samples of column {name!r} differ in shape: {tuple(store.shape[1:])} and "
            f"{tuple(value.shape)}",
            hint="bring them to one shape, as {type: Resize, size: [224, 224]} does for images, "
            "and with: [mask] in it for their masks",
            key=("data", "transforms"),
        )
    store[position] = value


def _column(store: Tensor | list[Any]) -> Prepared:
    """Return the column that a filled container holds."""
    if isinstance(store, Tensor):
        return Numbers(store)
    first = store[0] if store else None
    if isinstance(first, Tokens):
        return Ragged.of([t.values.tolist() for t in store], pad=first.pad, length=first.length)
    return Listed(store, "text" if all(isinstance(v, str) for v in store) else "things")


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor: in memory, or in a file if larger than `IN_MEMORY_BYTES`.

    The file is unlinked at once if the system allows that; its space lasts as long as the tensor.

    Raises:
        DataError: the disk has no room for the file.
    """
    size = prod(shape) * dtype.itemsize
    if size <= IN_MEMORY_BYTES:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="finetune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "column"
        with path.open("wb") as file:
            reserve(file.fileno(), size)
        # Shared with the file, so that the system can write pages out when memory is short.
        flat = torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype)
    return flat.reshape(shape)
