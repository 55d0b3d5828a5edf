"""Read rows of a table for prediction, as training read its own; names of files become paths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from finetune.config.source_keys import Source, TableSource
from finetune.data.column_kinds import Kind
from finetune.data.incoming.incoming_part import Incoming, is_image_kind
from finetune.data.readers.any_form import Form, with_separator_of
from finetune.data.readers.chunks import Reading
from finetune.data.readers.forms import opened_bytes
from finetune.data.sources.file_names import What, first_leaving, named_files, not_there
from finetune.data.sources.tabular import read_table
from finetune.data.table import Column, Listed, Unread
from finetune.errors import DataError
from finetune.importing import package_path


def read_rows(
    file: Path, reading: Reading, kinds: Mapping[str, Kind], own: Source | None
) -> Incoming:
    """Return the rows of a table file; names of files in it become paths.

    Args:
        file: The table.
        reading: What is known about it and wanted of it.
        kinds: Kind of each input column.
        own: Source of the training samples.

    Raises:
        DataError: it cannot be read, or names a file that is missing or outside of its folder.
    """
    with opened_bytes(file) as opened:
        part = rows_of(opened, reading, declared_form(file), file.parent)
    folder = folder_of_names(file, part.columns, kinds, own)
    return with_files(part, folder, kinds)


def with_files(part: Incoming, folder: Path, kinds: Mapping[str, Kind]) -> Incoming:
    """Return samples with names of files among them as paths, relative to a folder.

    Raises:
        DataError: it names a file that is missing or outside of the folder.
    """
    columns = {
        name: as_files(values, folder, part.names, kinds.get(name))
        for name, values in part.columns.items()
    }
    return replace(part, columns=columns)


def folder_of_names(
    table: Path,
    read: Mapping[str, Sequence[Any]],
    kinds: Mapping[str, Kind],
    own: Source | None,
) -> Path:
    """Return the folder that names of files in a table are relative to.

    That is the table's own folder, or the `folder` of the training data if the first name is not
    there: new tables lie beside their files, or beside those of training.
    """
    if not isinstance(own, TableSource) or own.folder is None:
        return table.parent
    wanted = [n for n, kind in kinds.items() if kind == "audio" or is_image_kind(kind)]
    columns = [read.get(name, ()) for name in wanted]
    names = [column[0] for column in columns if column and isinstance(column[0], str)]
    if any((table.parent / name).exists() for name in names):
        return table.parent
    return package_path(own.folder, key=("data", "source", "folder"))


def rows_of(file: BinaryIO, reading: Reading, declared: Form | None, folder: Path) -> Incoming:
    """Return the rows of an open table, each named by its number.

    Raises:
        DataError: it cannot be read.
    """
    reading = with_its_separator(file, reading)
    read = read_table(file, reading, declared, folder)
    columns = {
        # A column that was not read is there by its name alone, for messages.
        name: [] if _is_unread(column) else [column[row] for row in range(len(column))]
        for name, column in read.columns.items()
    }
    names = [f"{reading.name}:{number}" for number in range(1, read.count + 1)]
    return Incoming(reading.name, names, columns, read.places, read.notes)


def with_its_separator(file: BinaryIO, reading: Reading) -> Reading:
    """Return the reading with the separator of an open table, by its name and its first line."""
    # A tab is tried first in a .tsv, whatever training data had: its cells may hold commas.
    is_tsv = reading.name.lower().removesuffix(".gz").endswith(".tsv")
    return with_separator_of(file, reading, first="\t" if is_tsv else None)


def _is_unread(column: Column) -> bool:
    """Tell whether a column's cells were not read."""
    return isinstance(column, Listed) and isinstance(column.values, Unread)


def declared_form(file: Path) -> Form | None:
    """Return the format that a file's name tells, or None."""
    ending = Path(file.name.lower().removesuffix(".gz")).suffix
    match ending:
        case ".csv" | ".tsv":
            return "separated"
        case ".json" | ".jsonl" | ".ndjson":
            return "json"
        case ".parquet":
            return "parquet"
        case _:
            return None


def as_files(
    values: Sequence[Any], folder: Path, wheres: Sequence[str], kind: Kind | None
) -> Sequence[Any]:
    """Return images or recordings, with names among them as paths that must not leave `folder`.

    Args:
        values: Values of rows or lines; None for a missing one.
        folder: Folder that names are relative to.
        wheres: Place of each value, for messages.
        kind: Kind of the column; values of any other kind are returned as they are.

    Raises:
        DataError: a file is missing, or lies outside of the folder.
    """
    if not is_image_kind(kind) and kind != "audio":
        return values
    what: What = "recording" if kind == "audio" else "image"
    files: list[Any] = []
    for value, where in zip(values, wheres, strict=True):
        is_plain = value is None or isinstance(value, list)  # nothing, or an array of numbers
        try:
            files += [value] if is_plain else named_files([value], folder, what)
        except DataError as error:
            raise DataError(error.message, where=where) from error
    if (position := first_leaving(files, folder)) is not None:
        raise DataError(
            f"names {str(files[position])!r}, which leaves the folder of the file",
            where=wheres[position],
        )
    # Looked up before the network runs: half of the predictions would be written otherwise.
    for file, where in zip(files, wheres, strict=True):
        if isinstance(file, Path) and not file.exists():
            raise not_there(file, folder, what, where=where)
    return files
