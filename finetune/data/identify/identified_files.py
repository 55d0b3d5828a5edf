"""Identify images and recordings of a run: by contents, or by name and size where they are many.

To read the contents of very many files takes longer than to begin with training. Such files are
only listed, and each is hashed when it is first read.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune.data.audio import Audio
from finetune.data.hashes.contents import cost_of, file_states
from finetune.data.hashes.item_contents import ItemContents, is_of_files
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.identify.identity import KnownBy
from finetune.data.images import Images
from finetune.data.media.decoding import hash_bytes
from finetune.data.sources.file_names import What, missing_file
from finetune.data.table import DECODED, Table
from finetune.errors import DataError

_READ_AT_START_BYTES = 512 << 20
"""Files that take less in all are read at the start, about a second; a file counts 16 KiB more."""


def identified(table: Table, files: KnownFiles | None) -> Table:
    """Return a table with the hashes of its files, so that a changed one is refused on reading.

    Args:
        table: The columns in use.
        files: Hashes of files from earlier runs; None to read all files.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    columns = dict(table.columns)
    for name, column in _of_files(table):
        try:
            columns[name] = column.identified(files)
        except DataError as error:
            raise _with_row(error, column, table) from None
    return replace(table, columns=columns)


def all_identified(
    tables: Mapping[str, Table],
    files: KnownFiles | None,
    *,
    known_by: KnownBy | None,
    copies_matter: bool,
    skips: bool,
) -> tuple[dict[str, Table], list[str]]:
    """Return the tables of all parts with their files identified, all alike, and a note on how.

    Args:
        tables: The columns in use, by part.
        files: Hashes of files from earlier runs; None to read all files.
        known_by: What identified them when the run began; None for a new run.
        copies_matter: Whether the config asks for exact copies, which only contents tell.
        skips: Whether images that cannot be read are skipped: then no file is read at the start.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    # As when the run began: hashes of names and of contents cannot be compared.
    if known_by == "contents":
        return {part: identified(table, files) for part, table in tables.items()}, []
    states = {part: _listed(table, skips=skips) for part, table in tables.items()}
    found = [each for of_part in states.values() for each in of_part.values()]
    is_quick = sum(map(cost_of, found)) < _READ_AT_START_BYTES and not skips
    if known_by is None and (is_quick or copies_matter):
        return {part: identified(table, files) for part, table in tables.items()}, []
    places = _places({part: table for part, table in tables.items() if states[part]})
    by_names = {
        part: _by_names(table, states[part], places.get(part, ""), files, skips=skips)
        for part, table in tables.items()
    }
    return by_names, [_note(tables, states)] if any(map(len, found)) else []


def _note(tables: Mapping[str, Table], states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the note on how many files are listed."""
    listed = [
        (tables[part].columns[n], s) for part, each in states.items() for n, s in each.items()
    ]
    counts = {"image files": 0, "recordings": 0}
    for column, of_files in listed:
        counts["recordings" if isinstance(column, Audio) else "image files"] += len(of_files)
    files = " and ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    size = sum(int(of_files[:, 0].sum()) for _, of_files in listed)
    return (
        f"{files} ({size / 2**30:.2f} GiB) are identified by name and size: their "
        "contents are compared from the first reading on, exact copies are not looked for (split: "
        "{copies: together} reads all files at the start)"
    )


def _listed(table: Table, *, skips: bool) -> dict[str, Tensor]:
    """Return the states of the files of each column that holds nothing but files."""
    found = {}
    for name, column in _of_files(table):
        if is_of_files(column.items):
            try:
                what = _what(column)
                found[name] = file_states(column.items, what, skips=skips and what == "image")
            except DataError as error:
                raise _with_row(error, column, table) from None
    return found


def _places(tables: Mapping[str, Table]) -> dict[str, str]:
    """Return where each table's folder lies below the one that all of them share, as a prefix.

    Two parts may have files of one name in two folders: these are no copies.
    """
    # pathlib would follow links.
    folders = {part: os.path.abspath(_folder(table)) for part, table in tables.items()}  # noqa: PTH100
    shared = os.path.commonpath(folders.values()) if folders else ""
    below = {part: os.path.relpath(folder, shared) for part, folder in folders.items()}
    return {part: "" if place == os.curdir else place + os.sep for part, place in below.items()}


def _folder(table: Table) -> str:
    """Return the folder of a table's files: a source that is a folder goes by its own name."""
    return str(table.folder or table.name)


def _by_names(
    table: Table,
    states: Mapping[str, Tensor],
    place: str,
    files: KnownFiles | None,
    *,
    skips: bool,
) -> Table:
    """Return a table whose files are identified by name and size.

    Args:
        table: The columns in use.
        states: The state of each file of the columns that are listed.
        place: What stands before names in the table's folder.
        files: Hashes of files from earlier runs; None to read all files.
        skips: Whether images that cannot be read are skipped.
    """
    columns = dict(table.columns)
    for name, column in _of_files(table):
        if name not in states:
            columns[name] = column.identified(files)
            continue
        sizes = states[name][:, 0].tolist()
        # Without the folder: a copy of the data in another place is the same data.
        folder = os.path.join(_folder(table), "").removeprefix(os.curdir + os.sep)  # noqa: PTH118
        # As bytes, since names of files need not be text; a zero byte, which none has, ends each.
        told = (os.fsencode(_named(path, folder, place)) for path in column.items)
        names = [hash_bytes(b"%b\0%d" % each) for each in zip(told, sizes, strict=True)]
        what = _what(column)
        contents = ItemContents.listed(
            column.items, sizes, names, files, what, skips=skips and what == "image"
        )
        columns[name] = replace(column, contents=contents)
    return replace(table, columns=columns)


def _named(path: Path, folder: str, place: str) -> str:
    """Return the text of a path, with `place` instead of the folder that it begins with."""
    text = str(path)
    return place + text.removeprefix(folder) if text.startswith(folder) else text


def _of_files(table: Table) -> Iterator[tuple[str, Images | Audio]]:
    """Yield the columns of images and recordings by name."""
    for name, column in table.columns.items():
        if isinstance(column, DECODED):
            yield name, column


def _what(column: Images | Audio) -> What:
    """Return what a column holds, for messages."""
    return "recording" if isinstance(column, Audio) else "image"


def _with_row(error: DataError, column: Images | Audio, table: Table) -> DataError:
    """Return the error with the row of a missing file, which helps more than the path alone."""
    if table.folder is None:
        return error
    return missing_file(column, table.place, table.folder, _what(column)) or error
