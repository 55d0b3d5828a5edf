"""Choose the columns that are inputs and target, and find the kind of each."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard, assert_never

import torch

from finetune.config.data import DataConfig, SampleWeights
from finetune.config.image_keys import ImageKeys
from finetune.config.source_keys import CsvSource, RandomSource, Source
from finetune.config.transform_keys import TokenizeTransform, VisionTransform
from finetune.data.audio import Audio, audio_of
from finetune.data.audio_columns import as_audio, refuse_idle_audio_keys
from finetune.data.cells import infer, no_number, read_cells
from finetune.data.channels import Channels, channels_first, channels_of
from finetune.data.decoding import is_image
from finetune.data.file_names import files_of_table, named_files
from finetune.data.folders import IMAGE_ENDINGS
from finetune.data.gaps import as_gaps, filled_columns, numbers_of_gaps
from finetune.data.images import Images, images_of
from finetune.data.pixels import PLAIN_RULES, Mode, PixelRules
from finetune.data.readers.chunks import shown_names
from finetune.data.readers.row_places import Places
from finetune.data.readers.separated import separator_hint
from finetune.data.short_values import in_short
from finetune.data.table import Column, Listed, Numbers, Table, settle
from finetune.data.transforms import is_image_column
from finetune.data.waveforms import SoundRules
from finetune.errors import DataError, Faults, Key, did_you_mean

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
]
"""Kind of an input column; prediction reads raw values as the kind that training had.

Where a step fills empty cells, nothing is a value as well.
"""

_USUAL_INPUTS = ("text", "image", "features", "x")
_AUDIO = "audio"
"""The usual input of recordings, taken where none of the others is there: a table of texts may
name the recordings that they were said in."""
_USUAL_TARGETS = ("label", "target", "y")


def columns_in_use(config: DataConfig) -> set[str]:
    """Return all columns that `choose_columns` may choose; the cells of others need not be read."""
    inputs = (*_USUAL_INPUTS, _AUDIO) if config.inputs is None else config.inputs
    named = (config.target,) if isinstance(config.target, str) else config.target
    placing = placing_columns(config).values()
    targets = _USUAL_TARGETS if named is None else named
    return {*inputs, *targets, *config.loss_columns, *placing}


def placing_columns(config: DataConfig) -> dict[Key, str]:
    """Return the columns that say where samples go or how often they are drawn, by config key."""
    found: dict[Key, str] = {}
    if config.split is not None:
        of_split = {"by": config.split.by, "group": config.split.group}
        found = {("data", "split", key): name for key, name in of_split.items() if name is not None}
    if isinstance(config.balance, SampleWeights):
        found["data", "balance", "weights"] = config.balance.weights
    return found


def choose_columns(
    config: DataConfig, known: Collection[str], *, needs_target: bool
) -> tuple[tuple[str, ...], str | None]:
    """Return input columns and target: those the config names, else the usual names if unambiguous.

    Raises:
        DataError: a named column is missing, or it is unclear which ones are meant.
    """
    # several target columns were joined to one before this
    given = config.target if isinstance(config.target, str) else None
    # A guess is made only if it cannot be wrong: exactly one of the usual names is there.
    target = given or _usual(_USUAL_TARGETS, known)
    if config.inputs is not None:
        inputs: tuple[str, ...] | None = config.inputs
    else:
        names = _USUAL_INPUTS if {*_USUAL_INPUTS} & {*known} else (_AUDIO,)
        usual = _usual(names, known)
        inputs = None if usual is None else (usual,)
    if inputs is None or (target is None and needs_target):
        missing = "inputs" if inputs is None else "target"
        raise DataError(
            f"needs to know which columns are the {missing}; there are: {shown_names(known)}",
            hint=separator_hint(list(known)) or "name them: inputs: [...] and target: ...",
            key=("data", missing),
        )
    wanted: list[tuple[Key, str | None]] = [(("data", "inputs"), name) for name in inputs]
    wanted += [(("data", "target"), target)]
    wanted += [(("data", "loss_columns"), name) for name in config.loss_columns]
    faults = Faults()
    faults.add(
        DataError(
            f"no column {name!r}; there are: {shown_names(known)}",
            hint=separator_hint(list(known)) or did_you_mean(name, known) or _on_header(config),
            key=key,
        )
        for key, name in wanted
        if name is not None and name not in known
    )
    faults.raise_if_any()
    return inputs, target


def _on_header(config: DataConfig) -> str | None:
    """Return a hint for a csv whose first line may be a row, or None for other data."""
    if not isinstance(config.source or config.train, CsvSource):
        return None
    return "the first line of a csv names its columns; put such a line above the first row"


def settle_columns(
    table: Table,
    inputs: Sequence[str],
    for_loss: Sequence[str],
    images: Collection[str],
    masks: Collection[str],
    source: Source,
    key: Key,
) -> Table:
    """Return a table with only the columns in use, each of a definite kind.

    Text in a column of `images` is read as paths, relative to the source's folder.

    Args:
        table: All columns of a source.
        inputs: Names of the input columns.
        for_loss: Names of the target and of further columns for the loss.
        images: Inputs that must be images.
        masks: Columns for the loss that are masks if they hold images, or names of images.
        source: The config node of the source.
        key: Position of the node in the config.

    Raises:
        FinetuneError: a value is missing or of another kind, a path leaves the folder, or a key for
            images applies to no column. Faults of several columns are reported at once.
    """
    columns: dict[str, Column] = {}
    notes = list(table.notes)
    faults = Faults()
    for name in inputs:
        with faults.noted():
            columns[name], found = _settled_input(name, table, source, is_image=name in images)
            notes += found
    for name in for_loss:
        if name not in columns:
            with faults.noted():
                columns[name] = settled_for_loss(name, table, is_mask=name in masks)
    faults.raise_if_any()
    refuse_idle_keys([columns[name] for name in inputs], source, key)
    refuse_idle_audio_keys([columns[name] for name in inputs], source, key)
    return replace(table, columns=columns, notes=tuple(notes))


def _settled_input(
    name: str, table: Table, source: Source, *, is_image: bool
) -> tuple[Column, list[str]]:
    """Return an input column of a definite kind, and notes on how it is read."""
    column, notes = _of_some_kind(name, table), list[str]()
    is_named = not is_image and _names_images(column, table)
    if is_named:
        notes.append(f"column {name!r}: its texts name image files, which are read as images")
    if isinstance(column, Listed) and (
        _are_images(column) or is_named or (is_image and column.kind != "things")
    ):
        column = images_of(files_of_table(name, column.values, table))
    elif heard := as_audio(name, column, table, source):
        column, found = heard
        notes += found
    if isinstance(column, Images):
        column = ruled(column, source)
    elif isinstance(column, Numbers):
        column, found = _arranged(name, column, source, is_image=is_image)
        notes += found
    return column, notes


def _of_some_kind(name: str, table: Table) -> Column:
    """Return a column of a definite kind.

    Left open until here: only a column in use may be refused for what its cells hold.
    """
    column = table.columns[name]
    if isinstance(column, Listed) and column.kind == "things" and not _are_images(column):
        return settle(name, column.values, table.told)
    return column


def settled_for_loss(
    name: str, table: Table, *, is_mask: bool, may_name_any: bool = False
) -> Column:
    """Return a column that the loss takes, of a definite kind.

    Args:
        name: Name of the column.
        table: All columns of the source.
        is_mask: Whether it is of masks if it holds images, or names of images.
        may_name_any: Whether its names are of any files, as the caller's own are; else they must
            not leave the table's folder.

    Raises:
        DataError: a value is missing or of another kind, or a path leaves the folder.
    """
    column = _of_some_kind(name, table)
    if not isinstance(column, Listed):
        return replace(column, mode="mask") if is_mask and isinstance(column, Images) else column
    if not (_are_images(column) or (is_mask and end_like_images(column))):
        return column
    if may_name_any:
        files = named_files(column.values, Path())
    else:
        files = files_of_table(name, column.values, table)
    return images_of(files, "mask" if is_mask else None)


def _names_images(column: Column, table: Table) -> bool:
    """Tell whether all texts of a column end like image files, and the first names one."""
    if table.folder is None or not end_like_images(column):
        return False
    # The first alone is looked up: to look up a million names takes longer than to train.
    return Path(table.folder, column[0]).is_file()


def end_like_images(column: Column) -> TypeGuard[Listed]:
    """Tell whether all texts of a column end like image files."""
    if not isinstance(column, Listed) or column.kind == "things" or not len(column):
        return False
    endings = tuple(IMAGE_ENDINGS)
    return all(isinstance(text, str) and text.lower().endswith(endings) for text in column.values)


def ruled(images: Images, source: Source) -> Images:
    """Return images with the reading rules that the keys of their source give."""
    if not isinstance(source, ImageKeys):
        return images
    mode = source.colour_mode
    rules = PixelRules.of(source)
    return replace(images, mode=mode or images.mode, is_found=mode is None, rules=rules)


def refuse_idle_keys(inputs: Sequence[Column], source: Source, key: Key) -> None:
    """Raise if a key for images applies to no input column.

    Raises:
        DataError: there is such a key.
    """
    has_images = any(isinstance(column, Images) for column in inputs)
    has_arrays = any(isinstance(c, Numbers) and c.values.ndim == 4 for c in inputs)
    # An idle key is refused: somebody expects an effect that it does not have.
    channels = getattr(source, "channels", None)
    if channels in ("first", "last") and not has_arrays:
        raise DataError("no input column holds arrays of images", key=(*key, "channels"))
    if has_images or not isinstance(source, ImageKeys):
        return
    # `background` has a default, so only a value that differs was written.
    idle = {"background": source.background_rgb != PLAIN_RULES.background}
    idle |= {"range": source.range is not None, "channels": channels in ("grey", "rgb")}
    for name in filter(idle.get, idle):
        raise DataError("no input column holds images", key=(*key, name))


def _arranged(
    name: str, column: Numbers, source: Source, *, is_image: bool
) -> tuple[Numbers, list[str]]:
    """Return a column of arrays with its channels first, and notes if they were moved."""
    if isinstance(source, RandomSource):
        return column, []
    named = named_channels(source)
    channels = channels_of(column.values, named, is_image=is_image)
    if channels == "first":
        return column, []
    shape = tuple(column.values.shape[1:])
    said = f"column {name!r}: arrays of shape {shape} are read with their channels last"
    notes = [f"{said} (channels: first says otherwise)"] if named is None else []
    return Numbers(channels_first(column.values, channels)), notes


def named_channels(source: Source | None) -> Channels | None:
    """Return where a source says that arrays have their channels, or None."""
    named = getattr(source, "channels", None)
    return named if named in ("first", "last") else None


def _are_images(column: Listed) -> bool:
    """Tell whether a column is not empty and all its values are images."""
    return len(column) > 0 and all(map(is_image, column.values))


def image_columns(config: DataConfig, inputs: Sequence[str]) -> set[str]:
    """Return the inputs that must be images: those called `image`, or with an image transform."""
    nodes = config.transforms or ()
    named = {node.column or inputs[0] for node in nodes if isinstance(node, VisionTransform)}
    return (named | {"image"}) & set(inputs)


def tokenized_columns(config: DataConfig) -> set[str]:
    """Return the columns that a step makes tokens of."""
    # Digits in such a column are text too, such as telephone numbers.
    nodes = [node for node in config.transforms or () if isinstance(node, TokenizeTransform)]
    names = (name for node in nodes for name in node.columns or (node.column,))
    return {name for name in names if name is not None}


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
        return "text" if column.kind == "text" else "thing"
    if is_image_column(column):
        is_grey = column.values.ndim == 3 or column.values.shape[1] == 1
        return "grey image" if is_grey else "image"
    return "number" if column.values.is_floating_point() else "whole number"


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
    if kind == "audio":
        return audio_of(named_files(values, Path(), "recording"), SoundRules.of(trained_on))
    if kind in ("image", "grey image") and not _are_arrays(values):
        # Here names are the caller's own; names in files were checked where the files were read.
        mode: Mode = "L" if kind == "grey image" else "RGB"
        return images_of(named_files(values, Path()), mode, PixelRules.of(trained_on))
    column = settle(name, values, places)
    if kind in ("image", "grey image"):
        numbers = _as_numbers(name, column, places).values
        # By the same rule as in training, or the network would see other pixels.
        channels = channels_of(_in_range(numbers), named_channels(trained_on), is_image=True)
        return Numbers(channels_first(_in_range(numbers), channels))
    return as_kind(name, column, kind, places)


def may_be_nothing(kind: Kind | None) -> bool:
    """Tell whether a value of a kind may be missing."""
    return kind in ("text or nothing", "number or nothing")


def empty_column(kind: Kind) -> Column:
    """Return a column of a kind without a value: what is done to a column depends on its kind."""
    match kind:
        case "text" | "text or nothing":
            return Listed([], "text")
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
    if kind in ("text", "text or nothing"):
        if isinstance(column, Listed) and column.kind != "things":
            return replace(column, kind="text")
        cell = in_short(_cell(column, 0))
        raise DataError(f"column {name!r} needs text, got {cell} in {places.told(0)}")
    if kind == "number or nothing" and isinstance(column, Listed):
        column = numbers_of_gaps(column) or column
    numbers = _as_numbers(name, column, places)
    if kind == "whole number":
        return Numbers(_whole(name, numbers, column, places))
    return Numbers(_in_range(numbers.values))


def _as_files(name: str, column: Column, kind: Kind) -> Images | Audio:
    """Return images or recordings as the kind that training had; raise if it is another kind."""
    if isinstance(column, Images) and kind in ("image", "grey image"):
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


def _in_range(numbers: torch.Tensor) -> torch.Tensor:
    """Return numbers that are not whole as training had them: uint8 unchanged, others float32."""
    return numbers if numbers.dtype == torch.uint8 else numbers.float()


def _whole(name: str, column: Numbers, raw: Column, places: Places) -> torch.Tensor:
    """Return numbers as int64; raise if one has a fraction."""
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


def _usual(candidates: Sequence[str], known: Collection[str]) -> str | None:
    """Return the only candidate among the known names; None if there are none or several."""
    found = [name for name in candidates if name in known]
    return found[0] if len(found) == 1 else None


def _are_arrays(values: Sequence[Any]) -> bool:
    """Tell whether all values are arrays or lists."""
    return all(hasattr(value, "shape") or isinstance(value, list | tuple) for value in values)
