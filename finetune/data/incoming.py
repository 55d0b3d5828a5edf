"""New samples for a trained network: files, folders and standard input as raw columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from finetune.config.data import CsvSource, DataConfig, TextFolderSource
from finetune.data.columns import Kind
from finetune.data.files import json_object, read_csv, read_jsonl, read_text
from finetune.data.folders import is_image_file
from finetune.data.images import first_leaving, named_files
from finetune.errors import DataError
from finetune.reading import first_outside, limited_lines

_NAMED_BY = {".csv", ".jsonl"}
"""Files that name their columns; any other file is the value of one."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """Samples of one file, of the plain files of a folder, or of standard input."""

    source: str
    """Where they come from, for messages."""
    names: list[str]
    """A name for each sample."""
    columns: Mapping[str, Sequence[Any]]
    """The raw values of each input column."""


def read_incoming(
    source: str, config: DataConfig, kinds: Mapping[str, Kind], stdin: TextIO
) -> list[Incoming]:
    """Read the samples of a file, a folder or (`-`) standard input.

    `.csv` and `.jsonl` give rows; any other text file is one text, an image file one image, a
    folder all files below it but hidden ones. Standard input gives one sample a line: a JSON
    object, or a text. Text is read in the encoding of the training data.

    Args:
        source: The path, or `-`.
        config: `data:` of the config that the network was trained with.
        kinds: What each input column holds.
        stdin: Read for `-`.

    Raises:
        DataError: there is no such file, it cannot be read, or it lacks a column.
    """
    if source == "-":
        parts = [_read_lines(stdin, kinds)]
    else:
        parts = list(_read_path(Path(source), config, kinds))
    for part in parts:
        _refuse_missing_columns(part, kinds)
    if not any(part.names for part in parts):
        raise DataError("holds no sample", where=_shown(source))
    return parts


def _read_path(path: Path, config: DataConfig, kinds: Mapping[str, Kind]) -> Iterator[Incoming]:
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    files = _files_below(path, kinds) if path.is_dir() else [path]
    plain = [file for file in files if file.suffix.lower() not in _NAMED_BY]
    if plain:
        column = _the_column(kinds, plain[0])
        values = [_value(file, config, kinds[column]) for file in plain]
        yield Incoming(str(path), [str(file) for file in plain], {column: values})
    for file in files:
        if file.suffix.lower() in _NAMED_BY:
            yield _read_rows(file, config, kinds)


def _files_below(folder: Path, kinds: Mapping[str, Kind]) -> list[Path]:
    """Return the files of a folder in order; for a network of images, images and tables only."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if any(_is_image(kind) for kind in kinds.values()):
        files = [f for f in files if f.suffix.lower() in _NAMED_BY or is_image_file(f, folder)]
    if (position := first_outside(files, folder)) is not None:
        raise DataError("is a link that leaves the folder", where=str(files[position]))
    return files


def _read_rows(file: Path, config: DataConfig, kinds: Mapping[str, Kind]) -> Incoming:
    """Read a csv file as the training data was, and a jsonl file; paths are relative to it."""
    if file.suffix.lower() == ".csv":
        trained_on = config.source or config.train
        if not isinstance(trained_on, CsvSource):
            trained_on = CsvSource(type="csv", path=str(file))
        read = read_csv(file, trained_on, ())
    else:
        read = read_jsonl(file, ())
    columns: dict[str, Sequence[Any]] = {}
    for name, column in read.items():
        values = [column[row] for row in range(len(column))]
        if _is_image(kinds.get(name)):
            wheres = [f"{file}:{row}" for row in range(1, len(values) + 1)]
            values = _image_files(values, file.parent, wheres)
        columns[name] = values
    count = max((len(values) for values in columns.values()), default=0)
    return Incoming(str(file), [f"{file}:{number}" for number in range(1, count + 1)], columns)


def _image_files(values: Sequence[Any], folder: Path, wheres: Sequence[str]) -> list[Any]:
    """Return images, names among them as files none of which may leave `folder`.

    Args:
        values: What rows or lines hold; None where one holds nothing.
        folder: What names are relative to.
        wheres: Where each value stands, for messages.
    """
    files: list[Any] = []
    for value, where in zip(values, wheres, strict=True):
        is_plain = value is None or isinstance(value, list)  # nothing, or an array of numbers
        try:
            files += [value] if is_plain else named_files([value], folder)
        except DataError as error:
            raise DataError(error.message, where=where) from error
    if (position := first_leaving(files, folder)) is not None:
        raise DataError(
            f"names {str(files[position])!r}, which leaves the folder of the file",
            where=wheres[position],
        )
    for file, where in zip(files, wheres, strict=True):
        if isinstance(file, Path) and not file.exists():
            hint = f"names are relative to the folder {str(folder.resolve())!r}"
            raise DataError(f"no such image file {str(file)!r}", hint=hint, where=where)
    return files


def _read_lines(stdin: TextIO, kinds: Mapping[str, Kind]) -> Incoming:
    """Read one sample a line; where the network takes several columns, JSON objects alone."""
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        for number, line in limited_lines(stdin, "standard input"):
            if not line.strip():
                continue
            where = f"standard input:{number}"
            if line.lstrip().startswith("{"):
                rows.append(json_object(line, where))
            else:
                rows.append({_the_column(kinds, where): line.rstrip("\r\n")})
            names.append(f"-:{number}")
    except UnicodeDecodeError as error:
        raise DataError(f"not valid {error.encoding}", where="standard input") from error
    columns = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    for name in filter(lambda name: _is_image(kinds.get(name)), columns):
        columns[name] = _image_files(columns[name], Path(), names)
    return Incoming("standard input", names, columns)


def _value(file: Path, config: DataConfig, kind: Kind) -> Any:
    """Return what a plain file stands for: an image by its path, a text by its contents."""
    if _is_image(kind):
        return file
    if kind != "text":
        raise DataError(
            f"the network takes a {kind}, not a file", where=str(file), hint=_FILES_WITH_COLUMNS
        )
    source = config.source or config.train
    if not isinstance(source, TextFolderSource):
        source = TextFolderSource(type="textfolder", path="")
    return read_text(file, source, ())


def _the_column(kinds: Mapping[str, Kind], where: object) -> str:
    """Return the one input column, which a value without a name can only belong to."""
    if len(kinds) > 1:
        wanted = ", ".join(map(repr, kinds))
        raise DataError(
            f"the network takes the columns {wanted}", where=str(where), hint=_FILES_WITH_COLUMNS
        )
    return next(iter(kinds))


def _refuse_missing_columns(part: Incoming, wanted: Mapping[str, Kind]) -> None:
    if not part.names:
        return
    for name in wanted:
        values = part.columns.get(name)
        if values is None:
            known = ", ".join(map(repr, part.columns))
            raise DataError(f"no column {name!r}; there are: {known}", where=part.source)
        if None in values:
            number = next(n for n, value in enumerate(values) if value is None)
            raise DataError(f"no value for {name!r}", where=part.names[number])


def _is_image(kind: Kind | None) -> bool:
    return kind in ("image", "grey image")


def _shown(source: str) -> str:
    return "standard input" if source == "-" else source


_FILES_WITH_COLUMNS = "give them as a .csv or .jsonl file, or as JSON objects, one a line"
