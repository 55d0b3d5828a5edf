"""Read new samples for a trained network: which files of a place are tables, and which samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from finetune.config.data import DataConfig
from finetune.config.source_keys import (
    ArraysSource,
    AudioFolderSource,
    CsvSource,
    ImageFolderSource,
    Source,
    TextFolderSource,
)
from finetune.data.column_kinds import Kind, may_be_nothing
from finetune.data.incoming.incoming_lines import read_stream
from finetune.data.incoming.incoming_part import (
    FILES_WITH_COLUMNS,
    Incoming,
    is_image_kind,
    the_column,
    trained_on,
)
from finetune.data.incoming.incoming_rows import read_rows
from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.data.readers.any_form import KNOWN_FORMS, names_columns
from finetune.data.readers.chunks import Dialect, Reading, shown_names
from finetune.data.readers.forms import (
    content_of_bytes,
    has_table_ending,
    head_of,
    opened_bytes,
)
from finetune.data.readers.row_places import Places
from finetune.data.sources.arrays import rows_of_arrays
from finetune.data.sources.files import read_text
from finetune.data.sources.folders import (
    files_below,
    is_audio_file,
    is_image_file,
    passed_over,
)
from finetune.data.sources.tabular import dialect_of
from finetune.errors import DataError, did_you_mean
from finetune.reading import first_outside

_ONE_TEXT: tuple[list[Kind], ...] = (["text"], ["text or nothing"], ["words"])


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
    A file of arrays gives rows as well, if the training data were arrays. Any other text file is
    one text, an image file one image, a folder all files below it except hidden ones. Standard
    input that is no table gives one sample per line: a JSON object or a text.

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
        parts = [read_stream(stdin, config, kinds, target)]
    else:
        parts = list(_read_path(Path(source), config, kinds, target))
    for part in parts:
        _refuse_missing_columns(part, kinds)
    if not any(part.names for part in parts):
        raise DataError("holds no sample", where=_shown(source))
    return parts


class FoundFiles(NamedTuple):
    """The files at a path that hold samples, each kind in order, and notes on the others."""

    plain: list[Path]
    tables: list[Path]
    arrays: list[Path]
    notes: tuple[str, ...]


def files_at(path: Path, config: DataConfig, kinds: Mapping[str, Kind]) -> FoundFiles:
    """Return the files at a path that hold samples.

    Raises:
        DataError: there is none.
    """
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
    return FoundFiles(plain, tables, arrays, notes)


def _read_path(
    path: Path, config: DataConfig, kinds: Mapping[str, Kind], target: str | None
) -> Iterator[Incoming]:
    """Yield the samples of a path: first plain files, then each table, then each array file."""
    plain, tables, arrays, notes = files_at(path, config, kinds)
    if plain:
        part = plain_files(plain, path, config, kinds)
        yield replace(part, notes=(*notes, *part.notes))
        notes = ()
    for file in tables:
        dialect = dialect_of(trained_on(config))
        reading = Reading(str(file), dialect, kinds.keys(), list(notes), target)
        yield read_rows(file, reading, kinds, trained_on(config))
        notes = ()
    for file in arrays:
        yield replace(read_arrays(file, trained_on(config), kinds), notes=notes)
        notes = ()


def plain_files(
    files: Sequence[Path], path: Path, config: DataConfig, kinds: Mapping[str, Kind]
) -> Incoming:
    """Return plain files found at a path as samples of the only input column.

    Raises:
        DataError: there are several input columns, or a file is of another kind.
    """
    column = the_column(kinds, files[0], _no_text(files[0]))
    values = [_value(file, config, kinds[column]) for file in files]
    names = [str(file) for file in files]
    # Somebody may have meant each line as a sample.
    is_alone = len(values) == 1 and not path.is_dir()
    notes = _one_of_many_lines(names[0], values[0]) if is_alone else ()
    places = Places(tuple(names), tuple(range(len(names))))
    return Incoming(str(path), names, {column: values}, places, notes)


def _if_text(path: Path, kinds: Mapping[str, Kind]) -> str | None:
    """Return how a text is given, where what is no path may be meant for one."""
    is_meant = [*kinds.values()] in _ONE_TEXT and " " in str(path).strip()
    return (
        'a text comes by standard input: echo "a text" | finetune predict RUN -'
        if is_meant
        else None
    )


def _files_below(folder: Path) -> list[Path]:
    """Return the files of a folder and of those below it, sorted.

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
    own = trained_on(config)
    dialect = dialect_of(own)
    if not path.is_dir():
        return [file for file in files if _holds_table(file, dialect, kinds)]
    # Training on such a folder passes over its tables, so that they do not count here either. A
    # folder with nothing but tables may name the samples.
    is_of_files = isinstance(own, ImageFolderSource | AudioFolderSource)
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
    return is_named_so and isinstance(trained_on(config), ArraysSource)


def read_arrays(file: Path, source: Source | None, kinds: Mapping[str, Kind]) -> Incoming:
    """Return the input columns of an array file, cut out as those of the training data were."""
    assert isinstance(source, ArraysSource)
    columns = rows_of_arrays(file, source, kinds)
    names = [f"{file}:{row}" for row in range(1, max(map(len, columns.values()), default=0) + 1)]
    return Incoming(str(file), names, columns, Places.of(str(file)))


def _is_sample(file: Path, folder: Path, kinds: Mapping[str, Kind]) -> bool:
    """Tell whether a file of a folder can be a sample: an image, or a text."""
    if any(is_image_kind(kind) for kind in kinds.values()):
        return is_image_file(file, folder)
    if "audio" in kinds.values():
        return is_audio_file(file)
    return [*kinds.values()] in _ONE_TEXT and _no_text(file) is None


def _samples(kinds: Mapping[str, Kind]) -> str:
    """Return what samples of a folder are, in words."""
    if any(map(is_image_kind, kinds.values())):
        return "image and no table"
    if "audio" in kinds.values():
        return "recording and no table"
    return "text and no table" if [*kinds.values()] in _ONE_TEXT else "table"


def _no_text(file: Path) -> str | None:
    """Return what a file is, in words, if it is not text; else None."""
    with opened_bytes(file) as opened:
        head = head_of(opened)
    content = content_of_bytes(head, "utf-8")
    # UTF-16 has zero bytes as well, and is recognised by them or by its mark.
    if content.other is None and not content.is_told and b"\0" in head:
        return "a file with zero bytes"
    return content.other


def _one_of_many_lines(name: str, value: Any) -> tuple[str, ...]:
    """Return a note if one file of several lines is read as a single text."""
    if not isinstance(value, str) or (count := len(value.splitlines())) < 2:
        return ()
    return (f"{name} is read as one text of {count} lines; `predict RUN -` takes each line",)


def _value(file: Path, config: DataConfig, kind: Kind) -> Any:
    """Return the value of a plain file: its path for an image, its contents for a text."""
    other = _no_text(file)
    if is_image_kind(kind):
        if other is not None and "image" not in other and file.suffix.lower() not in IMAGE_ENDINGS:
            raise DataError(f"is {other}, no image", where=str(file))
        return file
    if kind == "audio":
        return file
    if kind not in ("text", "text or nothing", "words"):
        raise DataError(
            f"the network takes a {kind}, not {other or 'a file'}",
            where=str(file),
            hint=FILES_WITH_COLUMNS,
        )
    if other is not None:
        raise DataError(f"is {other}, no text", where=str(file), hint=KNOWN_FORMS)
    source = trained_on(config)
    if not isinstance(source, TextFolderSource):
        encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
        # Only its encoding is used.
        source = TextFolderSource(type="textfolder", path="", encoding=encoding)
    return read_text(file, source, ())


def _refuse_missing_columns(part: Incoming, wanted: Mapping[str, Kind]) -> None:
    """Raise if a part lacks an input column, or a value of one."""
    if not part.names:
        return
    for name in wanted:
        values = part.columns.get(name)
        if values is None:
            known = shown_names(part.columns, quoted=True)
            raise DataError(
                f"no column {name!r}; there are: {known}",
                hint=did_you_mean(name, part.columns),
                where=part.source,
            )
        # not `None in values`: comparing an array gives an array, not a truth value
        number = next((n for n, value in enumerate(values) if value is None), None)
        if number is not None and not may_be_nothing(wanted[name]):
            raise DataError(f"no value for {name!r}", where=part.names[number])


def _shown(source: str) -> str:
    """Return the name of a source for messages."""
    return "standard input" if source == "-" else source
