"""Choose the columns that are inputs and target, and decide what their cells are."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from finetune.config.data import DataConfig, SampleWeights
from finetune.config.image_keys import ImageKeys
from finetune.config.source_keys import CsvSource, RandomSource, Source
from finetune.config.transform_keys import TokenizeTransform, VisionTransform, named_columns
from finetune.data.images import Images, images_of
from finetune.data.media.channels import (
    Channels,
    channels_first,
    channels_of,
    notes_on_transparency,
)
from finetune.data.media.decoding import is_image
from finetune.data.media.file_endings import IMAGE_ENDINGS
from finetune.data.media.pixels import PLAIN_RULES, PixelRules
from finetune.data.readers.chunks import shown_names
from finetune.data.readers.separated import separator_hint
from finetune.data.sources.audio_columns import as_audio, refuse_idle_audio_keys
from finetune.data.sources.file_names import files_of_table
from finetune.data.table import Column, Listed, Numbers, Table, settle
from finetune.errors import DataError, Faults, Key, did_you_mean

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
    # What the config names as an input is no guess for the target: the answer would be given away.
    if given is None and inputs is not None and target in inputs:
        target = None
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
    absent = [(key, name) for key, name in wanted if name is not None and name not in known]
    of_header = separator_hint(list(known))
    # A first line that is cut wrongly has none of the names, for one reason: told once.
    more = f" and {len(absent) - 1} more" if of_header and len(absent) > 1 else ""
    faults = Faults()
    faults.add(
        DataError(
            f"no column {name!r}{more}; there are: {shown_names(known)}",
            hint=of_header or did_you_mean(name, known) or _on_header(config),
            key=key,
        )
        for key, name in absent[: 1 if of_header else None]
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


def settled_for_loss(name: str, table: Table, *, is_mask: bool) -> Column:
    """Return a column that the loss takes, of a definite kind.

    Args:
        name: Name of the column.
        table: All columns of the source.
        is_mask: Whether it is of masks if it holds images, or names of images.

    Raises:
        DataError: a value is missing or of another kind, or a path leaves the folder.
    """
    column = _of_some_kind(name, table)
    if not isinstance(column, Listed):
        return replace(column, mode="mask") if is_mask and isinstance(column, Images) else column
    if not (_are_images(column) or (is_mask and end_like_images(column))):
        return column
    return images_of(files_of_table(name, column.values, table), "mask" if is_mask else None)


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
    return all(map(ends_like_an_image, column.values))


def ends_like_an_image(value: object) -> bool:
    """Tell whether a value is a text that ends like the name of an image file."""
    return isinstance(value, str) and value.lower().endswith(tuple(IMAGE_ENDINGS))


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
    shape = tuple(column.values.shape[1:])
    notes = notes_on_transparency(name, shape, channels)
    if channels == "first":
        return column, notes
    said = f"column {name!r}: arrays of shape {shape} are read with their channels last"
    if named is None:
        notes.insert(0, f"{said} (channels: first says otherwise)")
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
    return {name for node in nodes for name in named_columns(node)}


def _usual(candidates: Sequence[str], known: Collection[str]) -> str | None:
    """Return the only candidate among the known names; None if there are none or several."""
    found = [name for name in candidates if name in known]
    return found[0] if len(found) == 1 else None
