"""Read tables as columns, for training and prediction: one file of any format, or a folder."""

import os
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from finetune.config.file_patterns import files_of_pattern, has_wildcard, is_pattern
from finetune.config.source_keys import CsvSource, Source, TableSource, TextFolderSource
from finetune.counting import Counting
from finetune.data.readers.any_form import Form, chunks_of, form_of
from finetune.data.readers.chunks import Chunk, Dialect, Reading
from finetune.data.readers.forms import TABLE_ENDINGS, has_table_ending, opened_bytes
from finetune.data.readers.mapped_file import ArrowFile, NotMappedError
from finetune.data.readers.parquet import is_made_by_datasets
from finetune.data.readers.row_places import Places
from finetune.data.sources.folders import (
    files_below,
    notes_on_parts_in,
    passed_over,
    refuse_endless,
    refuse_leaving,
)
from finetune.data.sources.hub import parquet_columns
from finetune.data.sources.kept_table import KeptTable
from finetune.data.table import Column, Listed, Unread
from finetune.errors import DataError, Key

CellKind = Literal["cells", "things"]
"""Of cells of a table: `cells` of separated values, which may be numbers, or things of any type."""
FORM_OF: dict[str, Form] = {
    **{"csv": "separated", "jsonl": "json", "json": "json", "parquet": "parquet"},
}
"""Format that a source's type declares."""


class TableFiles(NamedTuple):
    """The table files of a source, in order, and notes for the user on how they were found."""

    paths: list[Path]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadTables:
    """The rows of one table, or of several one after another."""

    columns: dict[str, Column]
    count: int
    places: Places
    notes: tuple[str, ...]
    kind: CellKind = "things"
    kept: KeptTable | None = None
    """Its folder in the cache; None if it is not kept."""


def dialect_of(source: Source | None) -> Dialect:
    """Return how tables are written, by the keys of their source; defaults for other sources."""
    match source:
        case CsvSource():
            quote = None if source.quote == "none" else source.quote
            is_sure = "quote" in source.model_fields_set
            missing = frozenset(source.missing)
            return Dialect(source.separator, quote, source.encoding, missing, is_sure)
        case TableSource():
            return Dialect(missing=frozenset(source.missing))
        case TextFolderSource():
            return Dialect(encoding=source.encoding)
        case _:
            return Dialect()


def tables_below(path: Path, within: Path | None, key: Key, kind: str) -> TableFiles:
    """Return the table files at a path, sorted, and notes for the user on how they were found.

    These are the file itself, the files that a pattern such as `part-*.csv` names, or every table
    below a folder.

    Args:
        path: A file, a folder, or a pattern in the last part of the path.
        within: Folder that no link may leave; None for the folder that is searched.
        key: Position of the path in the config.
        kind: Type of the source.

    Raises:
        DataError: there is no table, or a link leaves the folder.
    """
    if not path.exists():
        return _of_pattern(path, within, key)
    if not path.is_dir():
        refuse_endless(path, key)
        return TableFiles([path], ())
    known = ", ".join(TABLE_ENDINGS)
    found = files_below(path)
    files = [file for file in found if has_table_ending(file)]
    if not files:
        raise DataError(
            f"needs a file, or a folder of tables; {str(path)!r} is a folder and holds none",
            hint=f"a table ends in {known}, or in one of these and .gz",
            key=key,
        )
    refuse_leaving(files, within or path, key=key)
    others = sorted(set(found) - set(files))
    return TableFiles(files, (*passed_over(others, path), *_notes_on_place(files, path, kind)))


def _of_pattern(path: Path, within: Path | None, key: Key) -> TableFiles:
    """Return the files that a pattern such as `part-*.csv` names, sorted; raise without any."""
    folder = path.parent
    if not is_pattern(path) or not folder.is_dir():
        raise DataError(f"no such file {str(path)!r}", hint=_on_pattern(path), key=key)
    files = files_of_pattern(path)
    if not files:
        raise DataError(f"no file is called {path.name!r} in {str(folder)!r}", key=key)
    for file in files:
        refuse_endless(file, key)
    refuse_leaving(files, within or folder, key=key)
    shown = f"{files[0].name!r} to {files[-1].name!r}" if len(files) > 1 else f"{files[0].name!r}"
    number = "1 file" if len(files) == 1 else f"{len(files):,} files"
    return TableFiles(files, (f"{number} of {str(path)!r} read in sorted order: {shown}",))


def _on_pattern(path: Path) -> str | None:
    """Return a hint for a path with a wildcard where none is understood; None without one."""
    if "**" in str(path):
        return f"'**' is no pattern here; a folder reads all tables below it: {_before(path)!r}"
    if has_wildcard(str(path.parent)):
        return "only the last part of a path may be a pattern; a folder reads all tables below it"
    return None


def _before(path: Path) -> str:
    """Return the folder that a path begins with, up to its first part with a wildcard."""
    return str(next(above for above in path.parents if not has_wildcard(str(above))))


def _notes_on_place(files: Sequence[Path], folder: Path, kind: str) -> list[str]:
    """Return notes on tables in subfolders, and on names that look like parts of the data."""
    notes = []
    if below := [file for file in files if file.parent != folder]:
        example = f", such as {str(below[0])!r}"
        notes.append(
            f"{len(below):,} of {len(files):,} tables of {str(folder)!r} are read from folders "
            f"below it{example}"
        )
    names = [file.relative_to(folder).parts[0] for file in files]
    # A part may be a file such as `train.csv`, or a folder `train` of files.
    entries = {name.partition(".")[0]: folder / name for name in names}
    if len(entries) > 1:
        notes += notes_on_parts_in(entries, folder, kind, "tables", "one")
    return notes


def read_tables(
    paths: Sequence[Path],
    dialect: Dialect,
    declared: Form | None,
    wanted: Collection[str] | None,
    arrow: ArrowFile | None = None,
) -> ReadTables:
    """Return the rows of all tables, one table after another.

    Args:
        paths: The files.
        dialect: How they are written.
        declared: Format that the config or the file's name says.
        wanted: The columns whose cells are read; None for all.
        arrow: An empty Arrow file that cells are written to; None to keep them as Python objects.

    Raises:
        DataError: a table cannot be read, or its columns differ from those of the first.
        NotMappedError: `arrow` cannot hold the cells.
    """
    tables = _Builder(arrow)
    for path in paths:
        with opened_bytes(path) as file:
            tables.add(file, Reading(str(path), dialect, wanted), declared, path.parent)
    return tables.built()


def read_table(file: BinaryIO, reading: Reading, declared: Form | None, folder: Path) -> ReadTables:
    """Return the rows of one open table.

    Args:
        file: The table, at its beginning.
        reading: What is known about it and wanted of it.
        declared: Format that its name says; None if it says none.
        folder: Folder that names in it are relative to.

    Raises:
        DataError: it cannot be read.
    """
    table = _Builder()
    table.add(file, reading, declared, folder)
    return table.built()


def _num_bytes(file: BinaryIO) -> int | None:
    """Return the size of a file; None if it is packed, or a stream."""
    try:
        # In a packed file `tell` counts unpacked bytes, and nobody knows how many there will be.
        return None if isinstance(file, GzipFile) else os.fstat(file.fileno()).st_size
    except OSError:
        return None


def read_tables_of(
    cells: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    count: int,
    places: Places,
    notes: tuple[str, ...],
    kind: CellKind,
    made: Mapping[str, Column] | None = None,
) -> ReadTables:
    """Return tables whose cells were read.

    Args:
        cells: Cells of each column that is read.
        names: Names of all columns.
        count: Number of rows.
        places: Places of the rows.
        notes: Lines to report to the user.
        kind: Kind of the cells.
        made: Columns that a library has made.
    """
    columns: dict[str, Column] = dict.fromkeys(names, Unread.column(count))
    columns |= {name: Listed(values, kind) for name, values in cells.items()}
    return ReadTables(columns | dict(made or {}), count, places, notes, kind)


class _Builder:
    """Joins chunks of one or several tables into whole columns.

    Args:
        arrow: File that cells are written to; None to keep them in lists.
    """

    def __init__(self, arrow: ArrowFile | None = None) -> None:
        self._arrow = arrow
        self._cells: dict[str, list[Any]] = {}
        """Cells of each column; without any if a file takes them."""
        self._made: dict[str, Column] = {}
        """Columns that a library has made, which are not lists."""
        self._names: dict[str, None] = {}
        # 8 bytes per row, where a list of Python numbers takes 36.
        self._lines = array("Q")
        self._files: list[str] = []
        self._starts: list[int] = []
        self._count = 0
        self._form: Form | None = None
        self._notes: list[str] = []

    def add(self, file: BinaryIO, reading: Reading, declared: Form | None, folder: Path) -> None:
        """Read a table to its end and append its rows."""
        form = form_of(file, reading, declared)
        self._refuse_another(form, reading.name)
        self._files.append(reading.name)
        self._starts.append(self._count)
        # Its images and names of classes are in metadata that only that library understands.
        if form == "parquet" and is_made_by_datasets(file, reading.name):
            if self._arrow is not None:
                raise NotMappedError("the library `datasets` has written it")
            self._take(parquet_columns(file, reading.name, folder, reading.wanted))
        else:
            # Taken before the table is read, which adds its own columns.
            known = set(self._cells)
            counting, size = Counting(f"reading {reading.name}", "rows"), _num_bytes(file)
            for chunk in chunks_of(file, reading, form):
                self._put(chunk)
                counting.at(self._count, file.tell() / size if size else None)
                # Objects of JSON may leave out a key that has no value; a csv without a column is
                # another table.
                if form != "json":
                    self._refuse_other_columns(known, chunk, reading.name)
        self._notes += reading.notes

    def built(self) -> ReadTables:
        """Return all rows as columns."""
        kind: CellKind = "cells" if self._form == "separated" else "things"
        places = Places(tuple(self._files), tuple(self._starts), self._lines)
        cells = self._cells if self._arrow is None else self._arrow.columns()
        return read_tables_of(
            cells, tuple(self._names), self._count, places, tuple(self._notes), kind, self._made
        )

    def _put(self, chunk: Chunk) -> None:
        """Append a chunk; a column missing in it, or new in it, is None where it has no cell."""
        if self._arrow is not None:
            self._arrow.write(chunk)
            self._cells |= {name: [] for name in chunk.columns}
        else:
            for name in chunk.columns:
                if name not in self._cells:
                    self._cells[name] = [None] * self._count
            for name, cells in self._cells.items():
                cells.extend(chunk.columns.get(name) or [None] * chunk.count)
        self._names |= dict.fromkeys(chunk.names)
        self._lines.extend(chunk.lines or [0] * chunk.count)
        self._count += chunk.count

    def _take(self, columns: dict[str, Column]) -> None:
        """Append columns that a library has made; only lists can be joined with earlier ones."""
        count = max(map(len, columns.values()), default=0)
        lists = {
            name: list(column.values)
            for name, column in columns.items()
            if isinstance(column, Listed) and not isinstance(column.values, Unread)
        }
        made = {name: column for name, column in columns.items() if not isinstance(column, Listed)}
        if (made or self._made) and len(self._files) > 1:
            raise DataError(
                "images in several Parquet files are not joined",
                where=self._files[-1],
                hint="type: huggingface reads the folder by the datasets library",
            )
        self._made |= made
        self._put(Chunk(lists, tuple(columns), (), count))

    def _refuse_another(self, form: Form, name: str) -> None:
        """Raise if a table has separated values and the ones before do not, or vice versa."""
        # Cells of separated values are text that is read as numbers later; JSON and Parquet have
        # types.
        if self._form is not None and (form == "separated") is not (self._form == "separated"):
            raise DataError(
                f"is of another form than {self._files[0]}: one holds separated values",
                where=name,
                hint="bring the files of the folder to one form",
            )
        self._form = form

    def _refuse_other_columns(self, known: set[str], chunk: Chunk, name: str) -> None:
        """Raise if the columns of a table differ from those of the first one."""
        if len(self._files) > 1 and (differing := sorted(known ^ set(chunk.columns))):
            has, lacks = name, self._files[0]
            if differing[0] in known:
                has, lacks = lacks, has
            raise DataError(f"has no column {differing[0]!r}, which {has} has", where=lacks)
