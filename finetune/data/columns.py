"""Which columns of a source are the inputs and the target, and what kind each is."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from finetune.config.data import DataConfig, TokenizeTransform, VisionTransform
from finetune.data.files import separator_hint
from finetune.data.images import (
    Images,
    first_leaving,
    images_of,
    in_short,
    is_image,
    leaves,
    named_files,
)
from finetune.data.table import Column, Listed, Numbers, Table, infer, read_cells, settle
from finetune.data.transforms import is_image_column
from finetune.errors import DataError, did_you_mean

Kind = Literal["text", "image", "grey image", "number", "whole number", "thing"]
"""What an input column holds, so that prediction can read raw values as training did."""

_USUAL_INPUTS = ("text", "image", "features", "x")
_USUAL_TARGETS = ("label", "target", "y")


def choose_columns(
    config: DataConfig, known: Collection[str], *, needs_target: bool
) -> tuple[tuple[str, ...], str | None]:
    """Return the input columns and the target: those named, else the usual ones if plain.

    Raises:
        DataError: a named column is not there, or it is not plain which ones are meant.
    """
    target = config.target or _usual(_USUAL_TARGETS, known)
    if config.inputs is not None:
        inputs: tuple[str, ...] | None = config.inputs
    else:
        usual = _usual(_USUAL_INPUTS, known)
        inputs = None if usual is None else (usual,)
    if inputs is None or (target is None and needs_target):
        missing = "inputs" if inputs is None else "target"
        raise DataError(
            f"needs to know which columns are the {missing}; there are: {', '.join(known)}",
            hint=separator_hint(list(known)) or "name them: inputs: [...] and target: ...",
            key=("data", missing),
        )
    for key, name in [(("data", "inputs"), name) for name in inputs] + [
        (("data", "target"), target)
    ]:
        if name is not None and name not in known:
            raise DataError(
                f"no column {name!r}; there are: {', '.join(known)}",
                hint=separator_hint(list(known)) or did_you_mean(name, known),
                key=key,
            )
    return inputs, target


def settle_columns(
    table: Table, inputs: Sequence[str], target: str | None, images: Collection[str]
) -> Table:
    """Return only the columns in use, each of a known kind.

    Text in a column of `images` is taken for paths, relative to the folder of the source.

    Raises:
        DataError: a value is missing or of another kind, or a path leaves the folder.
    """
    columns: dict[str, Column] = {}
    for name in (*inputs, *([] if target is None else [target])):
        column = table.columns[name]
        if isinstance(column, Listed) and column.kind == "things" and not _are_images(column):
            column = settle(name, column.values, table.name)
        if isinstance(column, Listed) and (
            _are_images(column) or (name in images and column.kind != "things")
        ):
            column = images_of(_image_files(name, column.values, table))
        columns[name] = column
    return replace(table, columns=columns)


def _image_files(column: str, items: Sequence[Any], table: Table) -> list[Any]:
    """Return the images of a column, names among them as files that may not leave the data.

    Raises:
        DataError: a name leaves the folder of the data, or an item is no image.
    """
    folder = table.folder or Path()
    try:
        files = named_files(items, folder)
    except DataError as error:
        error.message = f"column {column!r} of {table.name}: {error.message}"
        raise
    within = table.within or folder
    if (row := first_leaving(files, within)) is not None:
        raise leaves(table.place(row), items[row], within)
    return files


def _are_images(column: Listed) -> bool:
    return len(column) > 0 and all(map(is_image, column.values))


def image_columns(config: DataConfig, inputs: Sequence[str]) -> set[str]:
    """Return the inputs that must be images: those named so, or given a vision transform."""
    nodes = config.transforms or ()
    named = {node.column or inputs[0] for node in nodes if isinstance(node, VisionTransform)}
    return (named | {"image"}) & set(inputs)


def kind_of(column: Column, name: str, config: DataConfig) -> Kind:
    """Return what a settled input column holds."""
    texts = {n.column for n in config.transforms or () if isinstance(n, TokenizeTransform)}
    column = read_cells(column, as_text=name in texts)
    if isinstance(column, Images):
        return "grey image" if column.mode == "L" else "image"
    if isinstance(column, Listed):
        return "text" if column.kind == "text" else "thing"
    if is_image_column(column):
        is_grey = column.values.ndim == 3 or column.values.shape[1] == 1
        return "grey image" if is_grey else "image"
    return "number" if column.values.is_floating_point() else "whole number"


def column_of(name: str, values: Sequence[Any], kind: Kind, source: str = "the input") -> Column:
    """Read raw values for prediction as a column of the kind that training had.

    Raises:
        DataError: a value is missing or of another kind.
    """
    values = list(values)
    if kind == "thing":
        return Listed(values, "things")
    if kind in ("image", "grey image") and not _are_arrays(values):
        # Names are the caller's own here; those of files were looked at where these were read.
        return images_of(named_files(values, Path()), "L" if kind == "grey image" else "RGB")
    column = settle(name, values, source)
    if kind == "text":
        if isinstance(column, Listed) and column.kind == "text":
            return column
        raise DataError(f"column {name!r} needs text, got {values[0]!r}")
    if isinstance(column, Listed) and column.kind == "text":
        column = infer(Listed(column.values, "cells"))
    if not isinstance(column, Numbers):
        raise DataError(f"column {name!r} needs numbers of one shape, got {in_short(values[0])}")
    if kind == "whole number":
        return Numbers(_whole(name, column))
    is_image = column.values.dtype == torch.uint8
    return column if is_image else Numbers(column.values.float())


def _whole(name: str, column: Numbers) -> torch.Tensor:
    values = column.values.long()
    if not torch.equal(values.to(column.values.dtype), column.values):
        raise DataError(f"column {name!r} needs whole numbers, as training had")
    return values


def _usual(candidates: Sequence[str], known: Collection[str]) -> str | None:
    """Return the one candidate that is there; None if there is none, or more."""
    found = [name for name in candidates if name in known]
    return found[0] if len(found) == 1 else None


def _are_arrays(values: Sequence[Any]) -> bool:
    return all(hasattr(value, "shape") or isinstance(value, list | tuple) for value in values)
