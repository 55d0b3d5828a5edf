"""Read new samples piece by piece, so that inputs may be larger than memory."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from finetune.config.data import DataConfig
from finetune.data.column_kinds import Kind, may_be_nothing
from finetune.data.incoming.incoming_lines import line_rows, opened_stream
from finetune.data.incoming.incoming_part import Incoming, notes_on_encoding, trained_on
from finetune.data.incoming.incoming_places import files_at, plain_files, read_arrays
from finetune.data.incoming.incoming_rows import (
    declared_form,
    folder_of_names,
    read_rows,
    with_files,
    with_its_separator,
)
from finetune.data.readers.any_form import Form, chunks_of, form_of, names_columns
from finetune.data.readers.chunks import Chunk, Reading, shown_names
from finetune.data.readers.forms import opened_bytes
from finetune.data.readers.parquet import is_made_by_datasets
from finetune.data.readers.row_places import Places
from finetune.data.readers.separated import separator_hint
from finetune.data.sources.tabular import dialect_of
from finetune.errors import DataError, FinetuneError, did_you_mean

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of new samples.

    Args:
        config: `data:` of the config that the network was trained with.
        kinds: Kind of each input column.
        target: Column that the network predicts; read too if a table has it.
        size: Samples of a piece; the last piece of each file is shorter.
        passes: Whether samples that cannot be read are reported in their piece, not raised.
    """

    config: DataConfig
    kinds: Mapping[str, Kind]
    target: str | None = None
    size: int = 1024
    passes: bool = False


def pieces_of(source: str, wanted: Wanted, stdin: TextIO) -> Iterator[Incoming]:
    """Yield the samples of a file, of a folder, or of standard input (`-`), piece by piece.

    They are those of `read_incoming`, with all columns of tables beside them. Only one piece is in
    memory at a time, except that a Parquet file that the `datasets` library wrote, and a file of
    arrays, are read whole.

    Args:
        source: The path, or `-`.
        wanted: What is wanted of them.
        stdin: Stream that is read for `-`.

    Raises:
        DataError: the file does not exist, cannot be read, or lacks a column.
    """
    is_stream, count = source == "-", 0
    found = _of_stream(stdin, wanted) if is_stream else _of_path(Path(source), wanted)
    encoding = dialect_of(trained_on(wanted.config)).encoding
    for part in found:
        count += len(part.names)
        whole = _without_gaps(part, wanted)
        # A stream is taken for UTF-8 where it can be.
        if not is_stream:
            notes = notes_on_encoding(whole, wanted.kinds.keys() & whole.columns.keys(), encoding)
            whole = replace(whole, notes=(*whole.notes, *notes))
        yield whole
    if not count:
        raise DataError("holds no sample", where="standard input" if is_stream else source)


def _of_path(path: Path, wanted: Wanted) -> Iterator[Incoming]:
    """Yield the samples of a path: first plain files, then each table, then each array file."""
    config, kinds = wanted.config, wanted.kinds
    plain, tables, arrays, notes = files_at(path, config, kinds)
    for files in _batches(plain, wanted.size):
        part = plain_files(files, path, config, kinds)
        yield replace(part, notes=(*notes, *part.notes))
        notes = ()
    for file in tables:
        reading = Reading(
            *(str(file), dialect_of(trained_on(config)), kinds.keys(), list(notes), wanted.target),
            others=True,
            passes=wanted.passes,
        )
        notes = ()
        yield from _of_table(file, reading, wanted)
    for file in arrays:
        yield replace(read_arrays(file, trained_on(config), kinds), notes=notes)
        notes = ()


def _of_table(file: Path, reading: Reading, wanted: Wanted) -> Iterator[Incoming]:
    """Yield the rows of a table file; names of files in it become paths."""
    own, folder = trained_on(wanted.config), None
    with opened_bytes(file) as opened:
        reading = with_its_separator(opened, reading)
        form = form_of(opened, reading, declared_form(file))
        if form == "parquet" and is_made_by_datasets(opened, reading.name):
            # Its images are in metadata that only that library understands.
            yield read_rows(file, replace(reading, others=False), wanted.kinds, own)
            return
        # Closed before the file: what decodes it would be closed by chance, behind it.
        with closing(_rows_of(opened, reading, form, wanted)) as parts:
            for part in parts:
                # By the first piece, for the whole file: its names are relative to one folder.
                if folder is None:
                    folder = folder_of_names(file, part.columns, wanted.kinds, own)
                yield _with_files(part, folder, wanted)


def _of_stream(stdin: TextIO, wanted: Wanted) -> Iterator[Incoming]:
    """Yield the samples of standard input: rows of a table, or one sample per line."""
    about = (wanted.config, wanted.kinds, wanted.target)
    file, reading = opened_stream(stdin, *about, passes=wanted.passes)
    reading = replace(reading, others=True)
    if names_columns(file, reading):
        reading = with_its_separator(file, reading)
        form = form_of(file, reading, None)
        parts = _rows_of(file, reading, form, wanted)
    else:
        form = "json"
        parts = _pieces(_line_chunks(file, reading, wanted), reading, wanted)
    count = 0
    for part in parts:
        lines, after = part.places.lines, count + len(part.names)
        # JSON and texts are known by their line; rows of a csv come after a line of names.
        numbers = lines if form == "json" else range(count + 1, after + 1)
        named = replace(part, names=[f"-:{number}" for number in numbers])
        count = after
        yield _with_files(named, Path(), wanted)


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield `size` items at a time; the last are fewer."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _line_chunks(file: BinaryIO, reading: Reading, wanted: Wanted) -> Generator[Chunk, None, None]:
    """Yield lines, each a sample of its own, as chunks of columns."""
    for lines in _batches(line_rows(file, reading, wanted.kinds), wanted.size):
        bad = {at: row for at, (_, row) in enumerate(lines) if isinstance(row, DataError)}
        if bad and not reading.passes:
            raise next(iter(bad.values()))
        rows = [{} if isinstance(row, DataError) else row for _, row in lines]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        yield Chunk(columns, tuple(names), [number for number, _ in lines], len(rows), bad)


def _rows_of(
    file: BinaryIO, reading: Reading, form: Form, wanted: Wanted
) -> Generator[Incoming, None, None]:
    """Yield the rows of an open table, each named by its number."""
    return _pieces(chunks_of(file, reading, form), reading, wanted)


def _pieces(
    chunks: Generator[Chunk, None, None], reading: Reading, wanted: Wanted
) -> Generator[Incoming, None, None]:
    """Yield chunks as pieces of equal size, with what was noted meanwhile."""
    known: dict[str, None] = {}
    count = told = 0
    waiting = _Waiting()
    with closing(chunks):
        for chunk in chunks:
            known |= dict.fromkeys(chunk.names)
            _refuse_missing(known, chunk, reading, wanted)
            waiting.add(chunk)
            while waiting.count >= wanted.size:
                yield _piece(waiting.take(wanted.size), count, reading, told, wanted)
                count, told = count + wanted.size, len(reading.notes)
        # Also without rows: notes on the end of a table come with it.
        yield _piece(waiting.take(waiting.count), count, reading, told, wanted)


@dataclass(slots=True)
class _Waiting:
    """Rows that were read and are in no piece yet."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    bad: dict[int, FinetuneError] = field(default_factory=dict)
    count: int = 0

    def add(self, chunk: Chunk) -> None:
        """Append a chunk; a column missing in it, or new in it, is None where it has no cell."""
        for name in chunk.columns:
            self.columns.setdefault(name, [None] * self.count)
        for name, cells in self.columns.items():
            cells.extend(chunk.columns.get(name) or [None] * chunk.count)
        self.lines.extend(chunk.lines or [0] * chunk.count)
        self.bad |= {self.count + row: error for row, error in chunk.bad.items()}
        self.count += chunk.count

    def take(self, size: int) -> "_Waiting":
        """Remove the first rows and return them."""
        first = _Waiting(
            {name: cells[:size] for name, cells in self.columns.items()},
            self.lines[:size],
            {row: error for row, error in self.bad.items() if row < size},
            size,
        )
        self.columns = {name: cells[size:] for name, cells in self.columns.items()}
        self.lines = self.lines[size:]
        self.bad = {row - size: error for row, error in self.bad.items() if row >= size}
        self.count -= size
        return first


def _piece(rows: _Waiting, before: int, reading: Reading, told: int, wanted: Wanted) -> Incoming:
    """Return rows as samples.

    Args:
        rows: The rows.
        before: How many rows of the file came before them.
        reading: The file.
        told: How many of its notes were passed on already.
        wanted: What is wanted of the samples.
    """
    used = [*wanted.kinds, *([] if wanted.target is None else [wanted.target])]
    columns = {name: rows.columns[name] for name in used if name in rows.columns}
    names = [f"{reading.name}:{number}" for number in range(before + 1, before + rows.count + 1)]
    # The file begins before the piece, so that rows are told by their numbers in the file.
    places = Places((reading.name,), (-before,), rows.lines)
    notes = tuple(reading.notes[told:])
    return Incoming(reading.name, names, columns, places, notes, rows.columns, rows.bad)


def _refuse_missing(
    known: Mapping[str, None], chunk: Chunk, reading: Reading, wanted: Wanted
) -> None:
    """Raise if a table with rows has had no input column of a name."""
    # Without a row that can be read, nothing may be known about the columns yet.
    if chunk.count == len(chunk.bad):
        return
    for name in wanted.kinds:
        if name not in known:
            shown = shown_names(known, quoted=True)
            raise DataError(
                f"no column {name!r}; there are: {shown}",
                hint=separator_hint(list(known)) or did_you_mean(name, known),
                where=reading.name,
            )


def _with_files(part: Incoming, folder: Path, wanted: Wanted) -> Incoming:
    """Return rows with names of files as paths; those without a usable file are bad, if asked."""
    if not wanted.passes:
        return with_files(part, folder, wanted.kinds)
    try:
        return with_files(part, folder, wanted.kinds)
    except DataError:
        pass
    bad: dict[int, FinetuneError] = dict(part.bad)
    columns = {name: list(cells) for name, cells in part.columns.items()}
    # Row by row, to find those at fault: all at once is quicker, and nearly always succeeds.
    for row in range(len(part.names)):
        one = {name: cells[row : row + 1] for name, cells in part.columns.items()}
        try:
            alone = with_files(
                replace(part, names=part.names[row : row + 1], columns=one), folder, wanted.kinds
            )
        except DataError as error:
            bad.setdefault(row, error)
        else:
            for name, cells in alone.columns.items():
                columns[name][row] = cells[0]
    return replace(part, columns=columns, bad=bad)


def _without_gaps(part: Incoming, wanted: Wanted) -> Incoming:
    """Return samples with those that lack a value among the bad; raise for the first, if asked."""
    bad: dict[int, FinetuneError] = dict(part.bad)
    for name, kind in wanted.kinds.items():
        if may_be_nothing(kind) or not part.names:
            continue
        cells: Sequence[Any] = part.columns.get(name, [None] * len(part.names))
        for row, cell in enumerate(cells):
            if cell is None and row not in bad:
                bad[row] = DataError(f"no value for {name!r}", where=part.names[row])
    if bad and not wanted.passes:
        raise bad[min(bad)]
    return replace(part, bad=bad)
