"""Readers of files and folders: csv, jsonl, folders of classes."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config.data import CsvSource, TextFolderSource
from finetune.data.folders import files_by_class
from finetune.data.images import images_of
from finetune.data.table import Column, Listed
from finetune.errors import DataError, FinetuneError, Key
from finetune.importing import package_path
from finetune.reading import limited_lines, parse_json_object


def existing(text: str, key: Key, *, folder: bool) -> Path:
    """Resolve a path of the config to the file, or the folder, that must be there.

    Raises:
        DataError: it is not there, or is the other of the two.
    """
    path = package_path(text, key=key)
    wanted, other = ("folder", "file") if folder else ("file", "folder")
    if not path.exists():
        raise DataError(f"no such {wanted} {str(path)!r}", key=key)
    if path.is_dir() is not folder:
        raise DataError(f"needs a {wanted}, {str(path)!r} is a {other}", key=key)
    return path


def read_csv(path: Path, source: CsvSource, key: Key) -> dict[str, Column]:
    """Read a csv file as columns of cells. Nothing is taken for missing, `NA` and `null` are text.

    Raises:
        DataError: a row has more or fewer values than the first line names columns.
    """
    with _unlimited_fields(), _opened(path, source.encoding, key) as file:
        reader = csv.reader(file, delimiter=source.separator, strict=True)
        try:
            names = next(reader, [])
            hint = separator_hint(names, source.separator)
            rows = [_row(row, names, f"{path}:{reader.line_num}", hint) for row in reader if row]
        except csv.Error as error:
            raise DataError(str(error), where=f"{path}:{reader.line_num}") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two columns are named {twice[0]!r}", where=f"{path}:1")
    return {
        name: Listed([row[position] for row in rows], "cells")
        for position, name in enumerate(names)
    }


def read_jsonl(path: Path, key: Key) -> dict[str, Column]:
    """Read one JSON object a line. A name that a line lacks is None there.

    Raises:
        DataError: a line is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    with _opened(path, "utf-8", key) as file:
        for number, line in limited_lines(file, str(path)):
            if line.strip():
                rows.append(json_object(line, f"{path}:{number}"))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Listed([row.get(name) for row in rows], "things") for name in names}


def read_text_folder(
    path: Path, source: TextFolderSource, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Read every file of every subfolder as `text`, in sorted order, the subfolder as `label`.

    Returns with the columns what is told of them.

    Raises:
        DataError: a file is not valid in the encoding, or a symbolic link leaves `within`.
    """
    found = files_by_class(path, within, key, images=False)
    texts = [read_text(file, source, key) for file in found.files]
    return {"text": Listed(texts, "text"), "label": Listed(found.labels, "text")}, found.notes


def read_image_folder(
    path: Path, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """List every image of every subfolder as `image`, in sorted order, the subfolder as `label`.

    Returns with the columns what is told of them.

    Raises:
        DataError: a symbolic link leaves `within`.
    """
    found = files_by_class(path, within, key, images=True)
    return {"image": images_of(found.files), "label": Listed(found.labels, "text")}, found.notes


def separator_hint(names: Sequence[str], separator: str = ",") -> str | None:
    """Return which separator to name, where the only column of a table looks like several."""
    only = names[0] if len(names) == 1 else ""
    found = max(";\t|,", key=only.count)
    if found == separator or found not in only:
        return None
    shown = {"\t": "a tab", "|": "'|'"}.get(found, repr(found))
    written = json.dumps(found)
    return f"its columns seem to be parted by {shown}: separator: {written}, beside the path"


def _row(row: list[str], names: list[str], where: str, hint: str | None) -> list[str]:
    if len(row) != len(names):
        raise DataError(
            f"holds {len(row)} values where the first line names {len(names)} columns",
            hint=hint,
            where=where,
        )
    return row


@contextmanager
def _unlimited_fields() -> Iterator[None]:
    """Lift the `csv` module's limit of 128 KiB a value, which is global."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _opened(path: Path, encoding: str, key: Key) -> Iterator[Any]:
    """Open a text file. A byte order mark, which spreadsheets write, is passed over."""
    try:
        name = "utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding
        with path.open(encoding=name, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not valid {encoding}: {error.reason}",
            hint="convert the file to utf-8, or name its encoding: encoding: latin-1",
            key=(*key, "path"),
        ) from error
    except LookupError as error:
        raise DataError(f"no encoding {encoding!r}", key=(*key, "encoding")) from error
    except OSError as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error.strerror}", key=(*key, "path")
        ) from error


def json_object(line: str, where: str) -> dict[str, Any]:
    """Read a line that holds one JSON object.

    Raises:
        DataError: it is something else, or exceeds a limit.
    """
    try:
        return parse_json_object(line, where)
    except FinetuneError as error:
        raise DataError(error.message, where=where) from error


def read_text(file: Path, source: TextFolderSource, key: Key) -> str:
    """Read a whole file as text, in the encoding of `source`.

    Raises:
        DataError: it cannot be read, or is not valid in that encoding.
    """
    try:
        return file.read_bytes().decode(source.encoding, source.errors)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{str(file)!r} is not valid {source.encoding}: byte 0x{byte:02x} at {error.start}",
            hint="errors: replace, or the right encoding, such as encoding: latin-1",
            key=(*key, "encoding"),
        ) from error
    except LookupError as error:
        raise DataError(f"no encoding {source.encoding!r}", key=(*key, "encoding")) from error
    except OSError as error:
        raise DataError(
            f"cannot read {str(file)!r}: {error.strerror}", key=(*key, "path")
        ) from error
