"""Columns that the user's own code gives: a mapping of columns, or a data set of samples."""

from collections.abc import Collection, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config.source_keys import ImportSource
from finetune.data.sources.hub import dataset_columns, quiet
from finetune.data.table import Column, Listed, Numbers, as_tensor
from finetune.errors import DataError, FinetuneError, Key
from finetune.importing import call_trusted, require
from finetune.models.shapes import first_line


def read_imported(
    source: ImportSource,
    within: Path | None,
    trust: Collection[str],
    key: Key,
    wanted: Collection[str] | None,
) -> dict[str, Column]:
    """Return the columns that the user's own code gives.

    Args:
        source: The config node.
        within: Folder that files named in the data must not leave; None for the current one.
        trust: Names of packages whose code may be imported.
        key: Position of the node in the config.
        wanted: The columns of a data set whose cells are read; None for all.

    Raises:
        DataError: it gives no columns or samples, or raises while it is read.
    """
    data = call_trusted(source.path, source.args, trust, key=key)
    if isinstance(data, Mapping):
        with _naming_code(repr(source.path), key):
            # Read out within the block: the user's own mapping may raise at any of its columns.
            found = list(data.items())
        return {str(name): _column(str(name), values, source, key) for name, values in found}
    # One that is read as a stream has no number of samples.
    is_of_datasets = type(data).__module__.startswith("datasets.") and hasattr(data, "__len__")
    if is_of_datasets:
        with quiet(require("datasets", extra="data")):
            return dataset_columns(data, Path(), within or Path(), source.path, wanted)
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        return _items_by_column(data, source, key)
    raise DataError(
        f"{source.path!r} returned {type(data).__name__}; expected a mapping of columns, a "
        "datasets.Dataset or a map-style torch Dataset",
        key=(*key, "path"),
    )


@contextmanager
def _naming_code(what: str, key: Key) -> Iterator[None]:
    """Turn whatever an object of the user's raises while it is read into a line that names it.

    Only the user's own code may run within: what our own raises is a bug, and keeps its traceback.
    """
    try:
        yield
    except (FinetuneError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{what} cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="call it in Python: the error there names the line of your code",
            key=(*key, "path"),
        ) from error


def _column(name: str, values: Any, source: ImportSource, key: Key) -> Column:
    """Return the values of one column from user code as a column.

    Raises:
        DataError: it is no column, or numbers of it are masked or have no data.
    """
    is_array = isinstance(values, np.ndarray | Tensor)
    if isinstance(values, Tensor) and not _has_plain_memory(values):
        raise DataError(
            f"column {name!r} is a tensor whose numbers do not lie in memory one after another",
            hint="such are tensors on the device meta, sparse and quantized ones",
            key=key,
        )
    if is_array and values.ndim and _is_of_numbers(values):
        if _is_masked(values):
            raise DataError(
                f"column {name!r} has masked numbers",
                hint="fill them in by values.filled(...), or leave such samples out",
                key=key,
            )
        return Numbers(as_tensor(values, name))
    if not hasattr(values, "__len__") or isinstance(values, str) or (is_array and not values.ndim):
        raise DataError(f"column {name!r} is {type(values).__name__}, not samples", key=key)
    with _naming_code(f"column {name!r} of {source.path!r}", key):
        cells = list(values)
    return _listed(name, cells, key)


def _has_plain_memory(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_quantized) and tensor.layout is torch.strided


def _is_of_numbers(values: np.ndarray[Any, Any] | Tensor) -> bool:
    """Tell whether an array holds real numbers."""
    if isinstance(values, Tensor):
        return not values.is_complex()
    return values.dtype.kind in "biuf"


def _is_masked(value: Any) -> bool:
    """Tell whether numpy hides a number of an array; torch would take what lies under the mask."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


def _listed(name: str, cells: list[Any], key: Key) -> Column:
    """Return single values as a column.

    Raises:
        DataError: one is a tensor without data, or a masked number.
    """
    for position, cell in enumerate(cells):
        if _is_masked(cell) or (isinstance(cell, Tensor) and cell.is_meta):
            raise DataError(f"column {name!r} has no data in sample {position}", key=key)
    return Listed(cells, "things")


def _items_by_column(data: Any, source: ImportSource, key: Key) -> dict[str, Column]:
    """Return the samples of a torch `Dataset` as columns; tuples give the columns `x` and `y`."""
    # Each sample once: to fetch one may be slow, or random.
    samples: list[Any] = []
    with _naming_code(repr(source.path), key):
        count = len(data)
    for position in range(count):
        with _naming_code(f"sample {position} of {source.path!r}", key):
            samples.append(data[position])
    if all(isinstance(sample, tuple | list) and len(sample) == 2 for sample in samples):
        samples = [{"x": sample[0], "y": sample[1]} for sample in samples]
    strange = next((sample for sample in samples if not isinstance(sample, Mapping)), None)
    if strange is not None:
        raise DataError(
            f"{source.path!r} gives samples of type {type(strange).__name__}; expected a dict, or "
            "a tuple (x, y)",
            key=(*key, "path"),
        )
    names = dict.fromkeys(str(name) for sample in samples for name in sample)
    return {name: _listed(name, [one.get(name) for one in samples], key) for name in names}
