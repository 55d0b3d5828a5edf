"""Kinds of input columns: found in training, and what prediction reads raw values as."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, assert_never

import torch

from finetune.config.data import DataConfig
from finetune.config.source_keys import Source
from finetune.data.audio import Audio, audio_of
from finetune.data.cells import infer, no_number, read_cells
from finetune.data.columns import named_channels, tokenized_columns
from finetune.data.gaps import as_gaps, filled_columns, numbers_of_gaps
from finetune.data.images import Images, images_of
from finetune.data.media.channels import channels_first, channels_of
from finetune.data.media.pixels import Mode, PixelRules
from finetune.data.media.waveforms import SoundRules
from finetune.data.readers.row_places import Places
from finetune.data.samples import Prepared
from finetune.data.short_values import in_short
from finetune.data.sources.file_names import named_files
from finetune.data.table import Column, Listed, Numbers, settle
from finetune.data.targets.words import as_words
from finetune.errors import DataError

Kind = Literal[
    "text",
    "image",
    "grey image",
    "number",
    "whole number",
    "thing",
    "text or nothing",
    "number or nothing",
    "audio",
    "words",
    "context",
]
"""Kind of an input column; prediction reads raw values as the kind that training had.

Where a step fills empty cells, nothing is a value as well.
"""


def kind_of(column: Column, name: str, config: DataConfig) -> Kind:
    """Return the kind of an input column that is settled."""
    column = read_cells(column, as_text=name in tokenized_columns(config))
    if isinstance(column, Audio):
        return "audio"
    if name in filled_columns(config) and not isinstance(column, Images):
        return "number or nothing" if isinstance(column, Numbers) else "text or nothing"
    if isinstance(column, Images):
        return "grey image" if column.mode == "L" else "image"
    if isinstance(column, Listed):
        if column.kind == "words" or column.kind == "context":
            return column.kind
        return "text" if column.kind == "text" else "thing"
    if is_image_column(column):
        is_grey = column.values.ndim == 3 or column.values.shape[1] == 1
        return "grey image" if is_grey else "image"
    return "number" if column.values.is_floating_point() else "whole number"


_MOST_OF_FLOATS = 2
"""Beyond this no pixel is one of 0 to 1, which resizing may leave a little."""
_MOST_OF_BYTE = 255
_BYTES_OR_FLOATS = "bytes (uint8) from 0 to 255, or numbers from 0 to 1"
_AT_ONCE = 1 << 22
"""Pixels that are looked at together."""


def is_image_column(column: Prepared) -> bool:
    """Tell whether a column holds images: files, arrays `(C, H, W)`, or uint8 arrays `(H, W)`."""
    if isinstance(column, Numbers):
        shape = column.values.shape[1:]
        is_grey = len(shape) == 2 and column.values.dtype == torch.uint8
        return is_grey or (len(shape) == 3 and shape[0] in (1, 3, 4))
    return isinstance(column, Images)


def is_of_bytes(column: Column) -> bool:
    """Tell whether a column holds images whose pixels are bytes, which become 0 to 1."""
    return is_image_column(column) and (
        not isinstance(column, Numbers) or column.values.dtype == torch.uint8
    )


def as_bytes(name: str, column: Column, places: Places, tell: Callable[[str], None]) -> Column:
    """Return images for a network that was trained on bytes, numbers of bytes as such.

    Lists of JSON, and arrays that were converted, hold bytes as numbers of another type. Whole
    numbers are bytes, however small; of floats, images with fractions are left as they are.

    Raises:
        DataError: pixels are neither, or some images are bytes and others are not.
    """
    if not isinstance(column, Numbers) or column.values.dtype == torch.uint8:
        return column
    if not column.values.numel():
        return column
    values = column.values.flatten(1)
    # In pieces: what is compared takes memory beside the images.
    pieces = values.split(max(1, _AT_ONCE // max(1, values.shape[1])))
    found = [_looked_at(some, was_whole=column.was_whole) for some in pieces]
    are_bytes, are_floats, are_wrong = (
        torch.cat(each).nonzero() for each in zip(*found, strict=True)
    )
    if len(are_wrong):
        row = int(are_wrong[0])
        worst = values[row][values[row].abs().argmax()].item()
        raise DataError(
            f"column {name!r} holds {worst:g} in {places.told(row)}; training had bytes, which the "
            "network gets as 0 to 1",
            hint=_BYTES_OR_FLOATS,
        )
    if not len(are_bytes):
        return column
    if len(are_floats):
        raise DataError(
            f"column {name!r} holds bytes in {places.told(int(are_bytes[0]))} and fractions in "
            f"{places.told(int(are_floats[0]))}",
            hint=f"all of one kind: {_BYTES_OR_FLOATS}",
        )
    most = values.max().item()
    tell(f"column {name!r}: numbers up to {most:g} are read as bytes, as training had them")
    return Numbers(column.values.to(torch.uint8))


def _looked_at(values: torch.Tensor, *, was_whole: bool) -> tuple[torch.Tensor, ...]:
    """Tell which images `(N, P)` are bytes, which have fractions, and which are neither, `(N,)`.

    Floats of 0 and 1 alone may be either, and go with the others.
    """
    is_byte = (values >= 0) & (values <= _MOST_OF_BYTE) & (values == values.round())
    fits, most = is_byte.all(1), values.abs().amax(1)
    is_wrong = ~fits & ((most > _MOST_OF_FLOATS) | was_whole)
    return fits & ((most > 1) | was_whole), ~fits & ~is_wrong, is_wrong


def column_of(
    name: str,
    values: Sequence[Any],
    kind: Kind,
    places: Places,
    trained_on: Source | None = None,
) -> Column:
    """Return raw values for prediction as a column of the kind that training had.

    Args:
        name: Name of the column.
        values: One value per row.
        kind: Kind of the column in training.
        places: Places of the rows, for messages.
        trained_on: Source of the training samples, whose keys say how images are read.

    Raises:
        DataError: a value is missing or of another kind.
    """
    values = list(as_gaps(values) if may_be_nothing(kind) else values)
    if kind == "thing":
        return Listed(values, "things")
    if kind == "words":
        return as_words(name, Listed(values, "words"), places.told)
    if kind == "audio":
        return audio_of(named_files(values, Path(), "recording"), SoundRules.of(trained_on))
    if kind in ("image", "grey image") and not _are_arrays(values):
        # Not checked against a folder: the caller has named these files. Names in a table were
        # checked when the table was read.
        mode: Mode = "L" if kind == "grey image" else "RGB"
        return images_of(named_files(values, Path()), mode, PixelRules.of(trained_on))
    column = settle(name, values, places)
    if kind in ("image", "grey image"):
        numbers = _as_numbers(name, column, places).values
        # By the same rule as in training, or the network would see other pixels.
        made = _in_range(numbers)
        channels = channels_of(made.values, named_channels(trained_on), is_image=True)
        return replace(made, values=channels_first(made.values, channels))
    return as_kind(name, column, kind, places)


def may_be_nothing(kind: Kind | None) -> bool:
    """Tell whether a value of a kind may be missing."""
    return kind in ("text or nothing", "number or nothing")


def empty_column(kind: Kind) -> Column:
    """Return a column of a kind without a value: what is done to a column depends on its kind."""
    match kind:
        case "text" | "text or nothing":
            return Listed([], "text")
        case "words" | "context":
            return Listed([], kind)
        case "thing":
            return Listed([], "things")
        case "image" | "grey image":
            return Images([], "L" if kind == "grey image" else "RGB", [])
        case "audio":
            return audio_of([], SoundRules())
        case "number" | "whole number" | "number or nothing":
            return Numbers(torch.empty(0))
        case _:
            assert_never(kind)


def as_kind(name: str, column: Column, kind: Kind, places: Places) -> Column:
    """Return a settled column as one of the kind that training had.

    Args:
        name: Name of the column.
        column: The column.
        kind: Its kind in training.
        places: Places of the rows, for messages.

    Raises:
        DataError: a value is of another kind.
    """
    if isinstance(column, Images | Audio) or kind == "audio":
        return _as_files(name, column, kind)
    if kind == "thing":
        return column
    if kind == "words":
        return as_words(name, column, places.told)
    if kind in ("text", "text or nothing", "context"):
        if isinstance(column, Listed) and column.kind != "things":
            return replace(column, kind="context" if kind == "context" else "text")
        cell = in_short(_cell(column, 0))
        raise DataError(f"column {name!r} needs text, got {cell} in {places.told(0)}")
    if kind == "number or nothing" and isinstance(column, Listed):
        column = numbers_of_gaps(column) or column
    numbers = _as_numbers(name, column, places)
    if kind == "whole number":
        return Numbers(_whole(name, numbers, column, places))
    return _in_range(numbers.values)


def _as_files(name: str, column: Column, kind: Kind) -> Images | Audio:
    """Return images or recordings as the kind that training had; raise if it is another kind."""
    if isinstance(column, Images) and kind in ("image", "grey image"):
        # Not found any more, but given by training: headers of other images do not change it.
        return replace(column, mode="L" if kind == "grey image" else "RGB", is_found=False)
    if isinstance(column, Audio) and kind == "audio":
        return column
    found = {Images: "images", Audio: "recordings"}.get(type(column), "no recordings")
    wanted = "recordings" if kind == "audio" else f"a {kind}"
    raise DataError(f"column {name!r} holds {found} where training had {wanted}")


def _as_numbers(name: str, column: Column, places: Places) -> Numbers:
    """Return the numbers that cells hold; raise if they hold anything else."""
    # What a text is was decided for this data alone; training decided that the column is numbers.
    if isinstance(column, Listed) and column.kind == "text":
        column = replace(column, kind="cells")
    if isinstance(column, Listed) and column.kind == "cells":
        column = infer(column)
    if isinstance(column, Listed) and column.kind == "text":
        raise no_number(name, column, places.told)
    if not isinstance(column, Numbers):
        raise DataError(f"column {name!r} needs numbers of one shape, got {in_short(column[0])}")
    return column


def _in_range(numbers: torch.Tensor) -> Numbers:
    """Return numbers that are not whole as training had them: uint8 unchanged, others float32."""
    values = numbers if numbers.dtype == torch.uint8 else numbers.float()
    is_whole = not numbers.is_floating_point() and numbers.dtype != torch.bool
    return Numbers(values, was_whole=is_whole)


def _whole(name: str, column: Numbers, raw: Column, places: Places) -> torch.Tensor:
    """Return numbers as int64; raise if one has a fraction."""
    # NaN and infinity differ from every whole number, so that gaps are found as well.
    whole = column.values.long()
    differs = whole.to(column.values.dtype) != column.values
    if bool(differs.any()):
        row = int(differs.reshape(len(column), -1).any(dim=1).nonzero()[0])
        cell = _cell(raw, row)
        raise DataError(
            f"column {name!r} needs whole numbers, as training had; it holds "
            f"{in_short(cell) if cell != '' else 'an empty cell'} in {places.told(row)}"
        )
    return whole


def _cell(column: Column, row: int) -> Any:
    """Return a cell for a message; tensors become Python numbers."""
    cell = column[row]
    return cell.tolist() if isinstance(cell, torch.Tensor) else cell


def _are_arrays(values: Sequence[Any]) -> bool:
    """Tell whether all values are arrays or lists."""
    return all(hasattr(value, "shape") or isinstance(value, list | tuple) for value in values)
