"""Read large tables as Arrow files in the cache: parsed once, mapped at every later start.

A table has a folder of its own there, named by a hash of its paths and of all that decides how they
are read. The folder holds `table.arrow` with the cells, `table.json` with the rest, and hashes of
the rows. It counts only while the source is what it was: by the states of its files or, where these
differ, by the hashes of their contents.

A table has one such file, with the columns that some config has used: where another one needs more
of them, it is parsed again with all of these.
"""

import os
import tempfile
from array import array
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from finetune import disk
from finetune.data.hashes.contents import Contents, read_contents, states_of
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.readers.any_form import Form
from finetune.data.readers.chunks import Dialect
from finetune.data.readers.mapped import LEAST_BYTES, mapped_columns
from finetune.data.readers.mapped_file import LINES, ArrowFile, NotMappedError
from finetune.data.readers.row_places import Places
from finetune.data.sources.kept_table import RECORD, KeptTable, read_record, record_bytes
from finetune.data.sources.tabular import ReadTables, read_tables, read_tables_of
from finetune.errors import DataError
from finetune.store.directory import filled_aside, key_of, place_filled
from finetune.store.layout import Layout, Meta, StoreError, os_errors_named
from finetune.store.store_folder import TABLE, folder_of, hold, touch

_VERSION = 3
"""Of the readers and of the files here; a higher one makes all tables anew."""


@dataclass(frozen=True, slots=True)
class _TableSource:
    """The files of a table, and how they are read."""

    paths: Sequence[Path]
    dialect: Dialect
    declared: Form | None
    wanted: Collection[str] | None

    @property
    def key(self) -> str:
        """Hash of all that decides what is read, besides contents of the files and columns."""
        how = self.dialect
        return key_of(
            {
                # As written, since messages quote them; and absolute, since the same relative path
                # is another file elsewhere.
                "table": [[str(path), os.path.abspath(path)] for path in self.paths],  # noqa: PTH100
                "dialect": [how.separator, how.quote, how.encoding, how.is_sure],
                "missing": sorted(how.missing),
                "declared": self.declared,
                "version": _VERSION,
            }
        )

    def wants(self, column: str) -> bool:
        """Tell whether the cells of a column are read."""
        return self.wanted is None or column in self.wanted

    def with_columns(self, others: Collection[str]) -> "_TableSource":
        """Return the source, to be read with these columns besides those in use."""
        return self if self.wanted is None else replace(self, wanted={*self.wanted, *others})

    def read(self, arrow: ArrowFile | None) -> ReadTables:
        """Parse the files; see `read_tables`."""
        return read_tables(self.paths, self.dialect, self.declared, self.wanted, arrow)


def read_large_tables(
    paths: Sequence[Path],
    dialect: Dialect,
    declared: Form | None,
    wanted: Collection[str] | None,
    files: KnownFiles | None,
) -> ReadTables:
    """Return the rows of all tables; those of many bytes are mapped, and parsed once.

    Args:
        paths: The files.
        dialect: How they are written.
        declared: Format that the config or the file's name says.
        wanted: The columns whose cells are read; None for all.
        files: Says where tables are kept, and receives notes; None to keep nothing.

    Raises:
        DataError: a table cannot be read, or its columns differ from those of the first.
    """
    sources = _TableSource(paths, dialect, declared, wanted)
    if not all(path.is_file() for path in paths) or _num_bytes(paths) < LEAST_BYTES:
        return sources.read(None)
    notes: list[str] = [] if files is None else files.notes
    try:
        if files is not None and files.disk_bytes > 0:
            try:
                return _kept_or_parsed(sources, files)
            except StoreError as error:
                notes.append(f"the table is parsed at every start: {error.in_one_line}")
        with tempfile.TemporaryFile() as file:
            return sources.read(ArrowFile(cast("BinaryIO", file)))
    except NotMappedError as error:
        notes.append(f"{paths[0]} is read into memory: {error}")
    except OSError as error:
        notes.append(f"{paths[0]} is read into memory: {disk.reason_of(error)}")
    return sources.read(None)


def _kept_or_parsed(sources: _TableSource, files: KnownFiles) -> ReadTables:
    """Return a table that was parsed earlier, or parse it."""
    folder = folder_of(files.root, sources.key)
    record = _unchanged_record(sources, folder)
    if record is None:
        return _parsed(sources, files)
    # What other configs use stays there: they would parse it again in turns.
    return _kept(sources, folder, record) or _parsed(sources.with_columns(record["read"]), files)


def _unchanged_record(sources: _TableSource, folder: Path) -> dict[str, Any] | None:
    """Return the record of a kept table; None if there is none, or its source has changed."""
    try:
        record = read_record(folder)
        return record if _is_unchanged(record, sources.paths, folder) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _kept(sources: _TableSource, folder: Path, record: dict[str, Any]) -> ReadTables | None:
    """Return a table that was parsed earlier; None if it is damaged, or lacks a column."""
    try:
        if any(sources.wants(name) for name in {*record["names"]} - {*record["read"]}):
            return None
        with disk.open_to_read(folder / TABLE) as file:
            hold(file)
            # A file that is where we left it needs no second look, which would read it whole.
            is_known = [*states_of([folder / TABLE])[0]] == record["arrow"]
            if not is_known and disk.digest_of(folder / TABLE) != record["digest"]:
                return None
            columns = mapped_columns(file, is_checked=not is_known)
        lines = array("Q", columns.pop(LINES).as_numbers().tobytes())
        columns = {name: cells for name, cells in columns.items() if sources.wants(name)}
        places = Places(tuple(map(str, sources.paths)), tuple(record["starts"]), lines)
        names, notes = record["names"], tuple(record["notes"])
        read = read_tables_of(columns, names, len(lines), places, notes, record["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    touch(folder)
    return replace(read, kept=KeptTable(folder, record["digest"]))


def _parsed(sources: _TableSource, files: KnownFiles) -> ReadTables:
    """Parse a table into a folder of the cache; it stays there if its source is quiet meanwhile."""
    before = states_of(sources.paths)
    with filled_aside(files.root, sources.key) as aside:
        with os_errors_named(aside / TABLE):
            descriptor = disk.descriptor_to_change(aside / TABLE, make=True)
            with os.fdopen(descriptor, "r+b") as file:
                hold(file)
                read = sources.read(ArrowFile(file))
                os.fsync(file.fileno())
        try:
            contents = read_contents(sources.paths, "table")
            # Rows of older contents would else be kept under the hashes of newer ones.
            if states_of(sources.paths) != before:
                raise DataError("is being written")
            return replace(read, kept=_placed(aside, sources, read, contents, files.disk_bytes))
        except (StoreError, DataError) as error:
            # The file has no name any more when this ends, and lasts as long as its columns.
            files.notes.append(f"{sources.paths[0]} is parsed again next time: {error.in_one_line}")
            return read


def _placed(
    aside: Path, sources: _TableSource, read: ReadTables, contents: Contents, disk_bytes: float
) -> KeptTable:
    """Give the folder of a parsed table its name."""
    with os_errors_named(aside / TABLE):
        digest = disk.digest_of(aside / TABLE)
        record = {
            "names": [*read.columns],
            "read": [name for name in read.columns if sources.wants(name)],
            "kind": read.kind,
            "starts": [*read.places.starts],
            "notes": [*read.notes],
            "states": contents.states.tolist(),
            "hashes": contents.hashes.tolist(),
            "arrow": [*states_of([aside / TABLE])[0]],
            "digest": digest,
        }
        disk.write_new(aside / RECORD, record_bytes(record))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"table": sources.paths[0].name}
    meta = Meta(sources.key, torch.__version__, Layout((), read.count), facts, created)
    return KeptTable(place_filled(aside, meta, disk_bytes), digest)


def _is_unchanged(record: dict[str, Any], paths: Sequence[Path], folder: Path) -> bool:
    """Tell whether files hold what they held; note their states if only those differ, if possible.

    Raises:
        OSError, ValueError: a file cannot be read, or is being written.
    """
    states = [[*state] for state in states_of(paths)]
    if states == record["states"]:
        return True
    try:
        contents = read_contents(paths, "table")
    except DataError as error:
        raise ValueError(error.message) from error
    if contents.hashes.tolist() != record["hashes"]:
        return False
    record["states"] = contents.states.tolist()
    # A cache that cannot be written may still be read; contents are then compared at every start.
    with suppress(OSError):
        disk.replace_file(folder / RECORD, record_bytes(record), str(os.getpid()))
    return True


def _num_bytes(paths: Sequence[Path]) -> int:
    """Return how many bytes files have."""
    return sum(path.stat().st_size for path in paths)
