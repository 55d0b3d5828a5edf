"""Readers of files and folders: csv, jsonl, parquet, arrays of numbers, folders of classes."""

import csv
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config.data import (
    ArrayColumn,
    ArraysSource,
    CsvSource,
    ImageFolderSource,
    TextFolderSource,
)
from finetune.data.images import Images
from finetune.data.table import Column, Listed, Numbers, as_tensor
from finetune.errors import DataError, FinetuneError, Key, did_you_mean
from finetune.importing import package_path
from finetune.reading import first_outside, limited_lines, parse_json_object

IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


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
            rows = [_row(row, names, f"{path}:{reader.line_num}") for row in reader if row]
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
) -> dict[str, Column]:
    """Read every file of every subfolder as `text`, in sorted order, the subfolder as `label`.

    Raises:
        DataError: a file is not valid in the encoding, or a symbolic link leaves `within`.
    """
    labelled = _files_by_class(path, None, within, key)
    texts = [read_text(file, source, key) for _, file in labelled]
    return {
        "text": Listed(texts, "text"),
        "label": Listed([label for label, _ in labelled], "text"),
    }


def read_image_folder(
    path: Path, source: ImageFolderSource, within: Path, key: Key
) -> dict[str, Column]:
    """List every image of every subfolder as `image`, in sorted order, the subfolder as `label`.

    Raises:
        DataError: a symbolic link leaves `within`.
    """
    labelled = _files_by_class(path, IMAGE_ENDINGS, within, key)
    files = [file for _, file in labelled]
    return {
        "image": Images(files, source.mode, range(len(files))),
        "label": Listed([label for label, _ in labelled], "text"),
    }


def read_arrays(path: Path, source: ArraysSource, key: Key) -> dict[str, Column]:
    """Read arrays of numbers and cut the columns out of them.

    Raises:
        DataError: an array is missing, holds Python objects, or does not have the shape named.
    """
    arrays = _load_arrays(path, key)
    columns = source.columns or {name: ArrayColumn(array=name) for name in arrays}
    return {
        name: _cut(name, column, arrays, (*key, "columns", name))
        for name, column in columns.items()
    }


def _row(row: list[str], names: list[str], where: str) -> list[str]:
    if len(row) != len(names):
        raise DataError(
            f"holds {len(row)} values where the first line names {len(names)} columns", where=where
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


def _files_by_class(
    path: Path, endings: set[str] | None, within: Path, key: Key
) -> list[tuple[str, Path]]:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"{str(path)!r} has no subfolders", hint="needs one per class", key=(*key, "path")
        )
    labelled = [
        (folder.name, file)
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not file.name.startswith(".")
        and (endings is None or file.suffix.lower() in endings)
    ]
    refuse_leaving([file for _, file in labelled], within, key=(*key, "path"))
    return labelled


def refuse_leaving(paths: Sequence[Path], within: Path, *, key: Key = ()) -> None:
    """Refuse files that lie, symbolic links followed, outside a folder.

    Raises:
        DataError: one does.
    """
    if (position := first_outside(paths, within)) is not None:
        raise DataError(
            f"{str(paths[position])!r} leaves the folder {str(within)!r}",
            hint="name a folder that holds all files: within: DIR, beside the path of the source",
            key=key,
        )


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


def _load_arrays(path: Path, key: Key) -> dict[str, np.ndarray[Any, Any]]:
    """Load every array of the file; a single one without a name is called `features`."""
    try:
        if path.name.endswith((".csv", ".csv.gz")):
            return {"features": _load_matrix(path)}
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        if strange := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{strange[0]!r} in it is no array")
        return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects" if "pickle" in str(error) else str(error)
        raise DataError(
            f"cannot read numbers from {str(path)!r}: {reason.partition(chr(10))[0]}",
            key=(*key, "path"),
        ) from error


def _load_matrix(path: Path) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data", UserWarning)
        try:
            return np.loadtxt(path, delimiter=",", dtype=np.int64, comments=None, ndmin=2)
        except ValueError:
            return np.loadtxt(path, delimiter=",", dtype=np.float64, comments=None, ndmin=2)


def _cut(
    name: str, column: ArrayColumn, arrays: dict[str, np.ndarray[Any, Any]], key: Key
) -> Column:
    values = _array(column, arrays, key)
    if values.dtype.kind in "US":
        return Listed([str(text) for text in values.astype(str).tolist()], "text")
    if values.ndim == 0:
        raise DataError(f"column {name!r} is a single number, needs samples first", key=key)
    if column.take is not None:
        values = _take(values, column.take, (*key, "take"))
    if column.shape is not None:
        try:
            values = values.reshape(len(values), *column.shape)
        except ValueError as error:
            raise DataError(
                f"cannot give samples of shape {values.shape[1:]} the shape {column.shape}",
                key=(*key, "shape"),
            ) from error
    return Numbers(as_tensor(_cast(values, column.dtype, (*key, "dtype")), name))


def _array(
    column: ArrayColumn, arrays: dict[str, np.ndarray[Any, Any]], key: Key
) -> np.ndarray[Any, Any]:
    if column.array is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if column.array is None:
        raise DataError(f"the file holds several arrays: {', '.join(arrays)}", key=(*key, "array"))
    if column.array not in arrays:
        raise DataError(
            f"no array {column.array!r}; there are: {', '.join(arrays)}",
            hint=did_you_mean(column.array, arrays),
            key=(*key, "array"),
        )
    return arrays[column.array]


def _take(values: np.ndarray[Any, Any], text: str, key: Key) -> np.ndarray[Any, Any]:
    if values.ndim < 2:
        raise DataError("the array has a single axis, there is nothing to take from", key=key)
    if ":" in text:
        return values[:, slice(*(int(part) if part else None for part in text.split(":")))]
    try:
        return values[:, int(text)]
    except IndexError as error:
        raise DataError(f"no position {text} among {values.shape[1]}", key=key) from error


def _cast(values: np.ndarray[Any, Any], dtype: str | None, key: Key) -> np.ndarray[Any, Any]:
    if dtype is None:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
    if dtype != "float32" and not np.array_equal(cast, values):
        raise DataError(f"some numbers do not fit {dtype}", key=key)
    return cast
