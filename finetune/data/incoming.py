"""Read new samples for a trained network from a file, a folder or standard input."""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from finetune.config.data import DataConfig
from finetune.config.source_keys import (
    ArraysSource,
    AudioFolderSource,
    CsvSource,
    ImageFolderSource,
    Source,
    TableSource,
    TextFolderSource,
)
from finetune.data.arrays import rows_of_arrays
from finetune.data.columns import Kind, may_be_nothing
from finetune.data.file_names import What, first_leaving, named_files, not_there
from finetune.data.files import read_text
from finetune.data.folders import (
    AUDIO_ENDINGS,
    IMAGE_ENDINGS,
    files_below,
    is_audio_file,
    is_image_file,
    passed_over,
)
from finetune.data.readers.any_form import KNOWN_FORMS, Form, names_columns, with_separator_of
from finetune.data.readers.chunks import Dialect, Reading, shown_names
from finetune.data.readers.documents import json_object
from finetune.data.readers.forms import (
    content_of_bytes,
    has_table_ending,
    head_of,
    kept,
    opened_bytes,
    text_of,
    unpacked,
)
from finetune.data.readers.row_places import Places
from finetune.data.table import Column, Listed, Unread
from finetune.data.tabular import dialect_of, read_table
from finetune.errors import DataError, named
from finetune.importing import package_path
from finetune.reading import first_outside, limited_lines

_READ_AT_ONCE = 1 << 20
_ONE_TEXT: tuple[list[Kind], ...] = (["text"], ["text or nothing"])


@dataclass(frozen=True, slots=True)
class Incoming:
    """Samples of one table, of the plain files of a folder, or of standard input."""

    source: str
    """Name of where they come from, for messages."""
    names: list[str]
    """A name for each sample."""
    columns: Mapping[str, Sequence[Any]]
    """Raw values of each input column."""
    places: Places
    """Place of each sample, for messages."""
    notes: tuple[str, ...] = ()
    """Lines to report to the user on how they were read."""

    def files(self) -> Iterator[Path]:
        """Yield the files that the samples are read from, with those that a table names."""
        yield from map(Path, self.places.files)
        for column in self.columns.values():
            if isinstance(column, list):
                yield from (value for value in column if isinstance(value, Path))


def read_incoming(
    source: str,
    config: DataConfig,
    kinds: Mapping[str, Kind],
    stdin: TextIO,
    *,
    target: str | None = None,
) -> list[Incoming]:
    """Return the samples of a file, of a folder, or of standard input (`-`).

    A table of any format gives rows, read as the training data was. A file counts as a table by its
    content (Parquet, JSON objects, or a first line that names the input columns) or by its ending.
    Any other text file is one text, an image file one image, a folder all files below it except
    hidden ones. Standard input that is no table gives one sample per line: a JSON object or a text.

    Args:
        source: The path, or `-`.
        config: `data:` of the config that the network was trained with.
        kinds: Kind of each input column.
        stdin: Stream that is read for `-`.
        target: Column that the network predicts; read too if a table has it.

    Raises:
        DataError: the file does not exist, cannot be read, or lacks a column.
    """
    if source == "-":
        parts = [_read_stream(stdin, config, kinds, target)]
    else:
        parts = list(_read_path(Path(source), config, kinds, target))
    for part in parts:
        _refuse_missing_columns(part, kinds)
    if not any(part.names for part in parts):
        raise DataError("holds no sample", where=_shown(source))
    return parts


def _read_path(
    path: Path, config: DataConfig, kinds: Mapping[str, Kind], target: str | None
) -> Iterator[Incoming]:
    """Yield the samples of a path: first plain files, then each table, then each array file."""
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), hint=_if_text(path, kinds))
    files = _files_below(path) if path.is_dir() else [path]
    # Arrays before tables: their endings are certain, while a table may be recognised by content.
    arrays = [file for file in files if _holds_arrays(file, config)]
    rest = sorted(set(files) - set(arrays))
    tables = _tables_among(rest, path, config, kinds)
    others = sorted(set(rest) - set(tables))
    plain = [f for f in others if _is_sample(f, path, kinds)] if path.is_dir() else others
    # Notes are given once, with the first part.
    notes = tuple(passed_over(sorted(set(others) - set(plain)), path))
    if not plain and not tables and not arrays:
        hint = notes[0] if notes else None
        raise DataError(f"holds no sample: no {_samples(kinds)}", where=str(path), hint=hint)
    if plain:
        column = _the_column(kinds, plain[0], _no_text(plain[0]))
        values = [_value(file, config, kinds[column]) for file in plain]
        names = [str(file) for file in plain]
        if len(values) == 1 and not path.is_dir():
            # Somebody may have meant each line as a sample.
            notes += _one_of_many_lines(names[0], values[0])
        places = Places(tuple(names), tuple(range(len(names))))
        yield Incoming(str(path), names, {column: values}, places, notes)
        notes = ()
    for file in tables:
        dialect = dialect_of(_trained_on(config))
        reading = Reading(str(file), dialect, kinds.keys(), list(notes), target)
        yield _read_rows(file, reading, kinds, _trained_on(config))
        notes = ()
    for file in arrays:
        yield replace(_read_arrays(file, _trained_on(config), kinds), notes=notes)
        notes = ()


def _if_text(path: Path, kinds: Mapping[str, Kind]) -> str | None:
    """Return how a text is given, where what is no path may be meant for one."""
    is_meant = [*kinds.values()] in _ONE_TEXT and " " in str(path).strip()
    return (
        'a text comes by standard input: echo "a text" | finetune predict RUN -'
        if is_meant
        else None
    )


def _files_below(folder: Path) -> list[Path]:
    """Return the files of a folder in order.

    Raises:
        DataError: one is a link that leaves the folder.
    """
    files = files_below(folder)
    if (position := first_outside(files, folder)) is not None:
        raise DataError("is a link that leaves the folder", where=str(files[position]))
    return files


def _tables_among(
    files: Sequence[Path], path: Path, config: DataConfig, kinds: Mapping[str, Kind]
) -> list[Path]:
    """Return the files at a path, a folder or the file itself, that are read as tables."""
    trained_on = _trained_on(config)
    dialect = dialect_of(trained_on)
    if not path.is_dir():
        return [file for file in files if _holds_table(file, dialect, kinds)]
    # Training on such a folder passes over its tables, so that they do not count here either. A
    # folder with nothing but tables may name the samples.
    is_of_files = isinstance(trained_on, ImageFolderSource | AudioFolderSource)
    if is_of_files and any(_is_sample(file, path, kinds) for file in files):
        return []
    return [file for file in files if _is_table_of_folder(file, dialect, kinds)]


def _is_table_of_folder(file: Path, dialect: Dialect, kinds: Mapping[str, Kind]) -> bool:
    """Tell whether a file found in a folder is a table, as `_holds_table` does.

    A file whose content decides, and cannot be read as text, is no table, except as under Raises.

    Raises:
        DataError: the only input column is text, and the file looks like text but cannot be read.
    """
    try:
        return _holds_table(file, dialect, kinds)
    except DataError:
        # The text may be a sample, in another encoding than the one that is known.
        if [*kinds.values()] in _ONE_TEXT and _no_text(file) is None:
            raise
        return False


def _holds_table(file: Path, dialect: Dialect, kinds: Mapping[str, Kind]) -> bool:
    """Tell whether a file is a table, by its ending or its content."""
    if has_table_ending(file):
        return True
    if file.suffix.lower() in IMAGE_ENDINGS | AUDIO_ENDINGS:
        return False
    reading = Reading(str(file), dialect, kinds.keys())
    with opened_bytes(file) as opened:
        return names_columns(opened, reading)


def _holds_arrays(file: Path, config: DataConfig) -> bool:
    """Tell whether a file is read as arrays: by its ending, if the training data were arrays."""
    is_named_so = file.suffix.lower() in (".npy", ".npz")
    return is_named_so and isinstance(_trained_on(config), ArraysSource)


def _read_arrays(file: Path, source: Source | None, kinds: Mapping[str, Kind]) -> Incoming:
    """Return the input columns of an array file, cut out as those of the training data were."""
    assert isinstance(source, ArraysSource)
    columns = rows_of_arrays(file, source, kinds)
    names = [f"{file}:{row}" for row in range(1, max(map(len, columns.values()), default=0) + 1)]
    return Incoming(str(file), names, columns, Places.of(str(file)))


def _is_sample(file: Path, folder: Path, kinds: Mapping[str, Kind]) -> bool:
    """Tell whether a file of a folder can be a sample: an image, or a text."""
    if any(_is_image(kind) for kind in kinds.values()):
        return is_image_file(file, folder)
    if "audio" in kinds.values():
        return is_audio_file(file)
    return [*kinds.values()] in _ONE_TEXT and _no_text(file) is None


def _samples(kinds: Mapping[str, Kind]) -> str:
    """Return what samples of a folder are, in words."""
    if any(map(_is_image, kinds.values())):
        return "image and no table"
    if "audio" in kinds.values():
        return "recording and no table"
    return "text and no table" if [*kinds.values()] in _ONE_TEXT else "table"


def _no_text(file: Path) -> str | None:
    """Return what a file is, in words, if it is not text; else None."""
    with opened_bytes(file) as opened:
        head = head_of(opened)
    content = content_of_bytes(head, "utf-8")
    if content.other is None and not content.is_told and b"\0" in head:
        return "a file with zero bytes"
    return content.other


def _one_of_many_lines(name: str, value: Any) -> tuple[str, ...]:
    """Return a note if one file of several lines is read as a single text."""
    if not isinstance(value, str) or (count := len(value.splitlines())) < 2:
        return ()
    return (f"{name} is read as one text of {count} lines; `predict RUN -` takes each line",)


def _read_rows(
    file: Path, reading: Reading, kinds: Mapping[str, Kind], trained_on: Source | None
) -> Incoming:
    """Return the rows of a table, read as the training data; names of files become paths."""
    with opened_bytes(file) as opened:
        part = _rows_of(opened, reading, _declared(file), file.parent)
    wheres, files = (
        part.names,
        [n for n, kind in kinds.items() if kind == "audio" or _is_image(kind)],
    )
    folder = _folder_of_names(file, [part.columns.get(name, ()) for name in files], trained_on)
    columns = {
        name: _files(values, folder, wheres, kinds.get(name))
        for name, values in part.columns.items()
    }
    return replace(part, columns=columns)


def _folder_of_names(
    table: Path, columns: Sequence[Sequence[Any]], trained_on: Source | None
) -> Path:
    """Return the folder that names of files in a table are relative to.

    That is the table's own folder, or the `folder` of the training data if the first name is not
    there: new tables lie beside their files, or beside those of training.
    """
    if not isinstance(trained_on, TableSource) or trained_on.folder is None:
        return table.parent
    names = [column[0] for column in columns if column and isinstance(column[0], str)]
    if any((table.parent / name).exists() for name in names):
        return table.parent
    return package_path(trained_on.folder, key=("data", "source", "folder"))


def _rows_of(file: BinaryIO, reading: Reading, declared: Form | None, folder: Path) -> Incoming:
    """Return the rows of an open table, each named by its number."""
    if reading.name.lower().removesuffix(".gz").endswith(".tsv"):
        reading = with_separator_of(file, reading, first="\t")
    else:
        reading = with_separator_of(file, reading)
    read = read_table(file, reading, declared, folder)
    columns = {
        name: [] if _is_unread(column) else [column[row] for row in range(len(column))]
        for name, column in read.columns.items()
    }
    names = [f"{reading.name}:{number}" for number in range(1, read.count + 1)]
    return Incoming(reading.name, names, columns, read.places, read.notes)


def _is_unread(column: Column) -> bool:
    """Tell whether a column's cells were not read."""
    return isinstance(column, Listed) and isinstance(column.values, Unread)


def _declared(file: Path) -> Form | None:
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


def _files(
    values: Sequence[Any], folder: Path, wheres: Sequence[str], kind: Kind | None
) -> Sequence[Any]:
    """Return images or recordings, with names among them as paths that must not leave `folder`.

    Args:
        values: Values of rows or lines; None for a missing one.
        folder: Folder that names are relative to.
        wheres: Place of each value, for messages.
        kind: Kind of the column; values of any other kind are returned as they are.
    """
    if not _is_image(kind) and kind != "audio":
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


def _read_stream(
    stdin: TextIO, config: DataConfig, kinds: Mapping[str, Kind], target: str | None
) -> Incoming:
    """Return the samples of standard input: rows of a table, or one sample per line."""
    name = "standard input"
    raw = getattr(stdin, "buffer", None)
    whole = (
        BytesIO(stdin.read().encode("utf-8", "surrogatepass")) if raw is None else kept(raw, name)
    )
    file = unpacked(whole, name)
    dialect = dialect_of(_trained_on(config))
    # who types or pipes text means UTF-8, whatever encoding the training files have; only if that
    # is another one must the text be read to know which of the two it is
    if not _is_called_utf8(dialect.encoding) and _is_utf8(file):
        dialect = replace(dialect, encoding="utf-8")
    reading = Reading(name, dialect, kinds.keys(), also=target)
    if names_columns(file, reading):
        part = _rows_of(file, reading, None, Path())
        lines = part.places.lines
        # Rows of a csv begin in line 2, behind the names; JSON has no such line.
        is_json = any(lines) and lines[0] != 2
        numbers = lines if is_json else range(1, len(part.names) + 1)
        part = replace(part, names=[f"-:{number}" for number in numbers])
    else:
        part = _read_lines(file, reading, kinds)
    columns = {
        name: _files(values, Path(), part.names, kinds.get(name))
        for name, values in part.columns.items()
    }
    return replace(part, columns=columns)


def _is_called_utf8(encoding: str) -> bool:
    """Tell whether the name of an encoding means UTF-8."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:  # told where the text is read
        return False


def _is_utf8(file: BinaryIO) -> bool:
    """Tell whether all bytes of a file are UTF-8, which keeps none of them."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while part := file.read(_READ_AT_ONCE):
            decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    finally:
        file.seek(0)
    return True


def _read_lines(file: BinaryIO, reading: Reading, kinds: Mapping[str, Kind]) -> Incoming:
    """Return one sample per line: a text, or a JSON object, the only form for several columns."""
    content = content_of_bytes(head_of(file), reading.dialect.encoding)
    if content.encoding is None:
        raise DataError(f"is {content.other}, no text", where=reading.name, hint=KNOWN_FORMS)
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    with text_of(file, content.encoding, reading.name) as text:
        for number, line in limited_lines(text, reading.name):
            if not line.strip():
                continue
            where = f"{reading.name}:{number}"
            # A text may begin with a brace as well, but then it is no JSON, and the error says so.
            if line.lstrip().startswith("{"):
                rows.append(json_object(line, where))
            else:
                rows.append({_the_column(kinds, where): line.rstrip("\r\n")})
            numbers.append(number)
    columns = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    places = Places((reading.name,), (0,), numbers)
    return Incoming(reading.name, [f"-:{number}" for number in numbers], columns, places)


def _value(file: Path, config: DataConfig, kind: Kind) -> Any:
    """Return the value of a plain file: its path for an image, its contents for a text."""
    other = _no_text(file)
    if _is_image(kind):
        if other is not None and "image" not in other and file.suffix.lower() not in IMAGE_ENDINGS:
            raise DataError(f"is {other}, no image", where=str(file))
        return file
    if kind == "audio":
        return file
    if kind not in ("text", "text or nothing"):
        raise DataError(
            f"the network takes a {kind}, not {other or 'a file'}",
            where=str(file),
            hint=FILES_WITH_COLUMNS,
        )
    if other is not None:
        raise DataError(f"is {other}, no text", where=str(file), hint=KNOWN_FORMS)
    source = _trained_on(config)
    if not isinstance(source, TextFolderSource):
        encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
        # Only its encoding is used.
        source = TextFolderSource(type="textfolder", path="", encoding=encoding)
    return read_text(file, source, ())


def _trained_on(config: DataConfig) -> Source | None:
    """Return the source of the training samples."""
    return config.source or config.train


def _the_column(kinds: Mapping[str, Kind], where: object, other: str | None = None) -> str:
    """Return the only input column; raise if there are several, as the value has no name.

    Args:
        kinds: Kind of each input column.
        where: Place of the value, for messages.
        other: What the value is, in words, if it is a file that is not text.
    """
    # Which column a bare value belongs to would be a guess.
    if len(kinds) > 1:
        found = "" if other is None else f"is {other}, and "
        raise DataError(
            f"{found}the network takes the columns {named(kinds)}",
            where=str(where),
            hint=FILES_WITH_COLUMNS,
        )
    return next(iter(kinds))


def _refuse_missing_columns(part: Incoming, wanted: Mapping[str, Kind]) -> None:
    """Raise if a part lacks an input column, or a value of one."""
    if not part.names:
        return
    for name in wanted:
        values = part.columns.get(name)
        if values is None:
            known = shown_names(part.columns, quoted=True)
            raise DataError(f"no column {name!r}; there are: {known}", where=part.source)
        # not `None in values`: comparing an array gives an array, not a truth value
        number = next((n for n, value in enumerate(values) if value is None), None)
        if number is not None and not may_be_nothing(wanted[name]):
            raise DataError(f"no value for {name!r}", where=part.names[number])


def _is_image(kind: Kind | None) -> bool:
    """Tell whether a kind is one of images."""
    return kind in ("image", "grey image")


def _shown(source: str) -> str:
    """Return the name of a source for messages."""
    return "standard input" if source == "-" else source


FILES_WITH_COLUMNS = (
    "give them as a table (.csv, .tsv, .jsonl, .parquet), or as JSON objects, one a line"
)
