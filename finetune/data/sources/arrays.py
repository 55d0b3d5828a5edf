"""Read arrays of numbers from `.npy`, `.npz` and headless `.csv`, without trusting their headers.

A header of a hundred bytes can promise a terabyte, which numpy allocates before it reads. So each
header is compared with what the file holds before anything is allocated.
"""

import math
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tokenize import TokenError  # a header as of Python 2 is parsed by tokens
from typing import IO, Any

import numpy as np

from finetune.config.source_keys import ArrayColumn, ArraysSource
from finetune.data.media.channels import refuse_scrambling
from finetune.data.readers.forms import refuse_bomb, refuse_gzip_bomb
from finetune.data.table import Column, Listed, Numbers, as_tensor
from finetune.errors import DataError, Key, did_you_mean

Array = np.ndarray[Any, Any]

_MAX_EMPTY = 1 << 31
"""Largest product of the other axes if one axis is 0: such an array needs no bytes in the file."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAULTS = (
    OSError, ValueError, EOFError, TypeError, OverflowError, MemoryError, LookupError,
    RuntimeError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions that numpy and `zipfile` raise for damaged or malicious files."""


def read_arrays(path: Path, source: ArraysSource, key: Key) -> dict[str, Column]:
    """Return the columns of a file of arrays, cut out as the source says.

    Raises:
        DataError: an array is missing, holds Python objects, promises more than the file holds, or
            does not have the shape that the source names.
    """
    arrays = _load_arrays(path, key)
    columns = source.columns or {name: ArrayColumn(array=name) for name in arrays}
    return {
        name: _cut(name, column, arrays, (*key, "columns", name))
        for name, column in columns.items()
    }


def rows_of_arrays(
    path: Path, source: ArraysSource, wanted: Collection[str]
) -> dict[str, list[Any]]:
    """Return the `wanted` columns of a file of arrays for prediction, each a list of samples.

    Raises:
        DataError: as for `read_arrays`, or a column is missing.
    """
    if source.columns is not None:
        # Other columns, such as the target, may be missing in data for prediction.
        cuts = {name: cut for name, cut in source.columns.items() if name in wanted}
        source = source.model_copy(update={"columns": cuts})
    read = read_arrays(path, source, ())
    for name in wanted:
        if name not in read:
            known = ", ".join(map(repr, read))
            raise DataError(f"no array {name!r}; there are: {known}", where=str(path))
    return {
        name: list(column.values.numpy() if isinstance(column, Numbers) else column.values)
        for name, column in read.items()
        if name in wanted and isinstance(column, Numbers | Listed)
    }


def _load_arrays(path: Path, key: Key) -> dict[str, Array]:
    """Return all arrays of a file by name; a single one without a name is called `features`."""
    with _readable(path, key):
        if path.name.endswith((".csv", ".csv.gz")):
            # By its name, since headless numbers have no first bytes that tell.
            return {"features": _load_matrix(path)}
        with path.open("rb") as file:
            # By its first bytes, as numpy does: the name's ending may be wrong.
            if file.read(4) in (b"PK\3\4", b"PK\5\6"):
                return _load_archive(path)
            file.seek(0)
            return {"features": _load_array(file, path.stat().st_size, None)}


@contextmanager
def _readable(path: Path, key: Key) -> Iterator[None]:
    """Turn exceptions of numpy and `zipfile` into a `DataError` that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"cannot read numbers from {str(path)!r}: {error.message}",
            hint=error.hint,
            key=(*key, "path"),
        ) from error
    except _FAULTS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"cannot read numbers from {str(path)!r}: {reason}", key=(*key, "path")
        ) from error


def _load_archive(path: Path) -> dict[str, Array]:
    """Return all arrays of an `.npz`; nothing is unpacked to disk."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(members, path.stat().st_size)
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                arrays[name] = _load_array(file, member.file_size, name)
        return arrays


def _check_members(members: list[zipfile.ZipInfo], size_bytes: int) -> None:
    """Raise if an archive was not written by numpy, or unpacks to far more than its size."""
    count = Counter(member.filename.removesuffix(".npy") for member in members)
    for member in members:
        shown = repr(member.filename)
        if member.flag_bits & 1:
            # zipfile's own error for this would ask for a password.
            raise DataError(f"{shown} in it is encrypted")
        if member.compress_type not in _COMPRESSIONS:
            raise DataError(f"{shown} in it is packed by method {member.compress_type}")
        if count[member.filename.removesuffix(".npy")] > 1:
            raise DataError(f"two arrays in it are named {shown}")
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{shown} in it is the name of a file elsewhere")
    # The sizes in the directory are claims; zipfile stops reading a member at the size it claims.
    refuse_bomb(sum(member.file_size for member in members), size_bytes)


def _load_array(file: IO[bytes], size_bytes: int, name: str | None) -> Array:
    """Return one array, after its header was checked.

    Args:
        file: The file, at the beginning of the array.
        size_bytes: Number of bytes that it has.
        name: Name of the array in an archive, for messages; None for a file of its own.
    """
    where = "it" if name is None else f"{name!r} in it"
    shape, dtype, header_bytes = _header(file, where)
    _check_promise(shape, dtype, size_bytes - header_bytes, where)
    file.seek(0)
    # With `allow_pickle` an array of objects would run code that is in the file.
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape and dtype of an array, and the position where its numbers begin."""
    if file.read(6) != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{where} is no array of numpy")
    version = tuple(file.read(2))
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        # 3.0 only differs in the field names of records, which are not read here.
        raise DataError(f"{where} holds records, or is of an unknown version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        shape, _, dtype = readers[version](file)
    return shape, dtype, file.tell()


def _check_promise(shape: tuple[int, ...], dtype: np.dtype[Any], held: int, where: str) -> None:
    """Raise if a header promises more bytes than follow it, or an impossible shape or type."""
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects")
    if dtype.itemsize == 0:
        raise DataError(f"{where} holds {dtype}, values of no bytes")
    # For Python True is 1, and a negative length makes the product look small.
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise DataError(f"{where} has the impossible shape {shape}")
    promised = math.prod(shape) * dtype.itemsize
    if promised > held:
        raise DataError(
            f"{where} should hold {_short(shape)} of {dtype}, {_short(promised)} bytes, but has "
            f"{max(held, 0)}"
        )
    if promised == 0 and math.prod(length for length in shape if length) > _MAX_EMPTY:
        raise DataError(f"{where} has the shape {_short(shape)}, and nothing in it")


def _short(value: object) -> str:
    """Return a value as text, cut for a message."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _load_matrix(path: Path) -> Array:
    """Return the numbers of a csv file without header, `(N, ...)`: int64 if all are whole."""
    if path.name.endswith(".gz"):
        with path.open("rb") as file:
            refuse_gzip_bomb(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data", UserWarning)
        try:
            return np.loadtxt(path, delimiter=",", dtype=np.int64, comments=None, ndmin=2)
        except ValueError:
            return np.loadtxt(path, delimiter=",", dtype=np.float64, comments=None, ndmin=2)


def _cut(name: str, column: ArrayColumn, arrays: dict[str, Array], key: Key) -> Column:
    """Return one column, cut, reshaped and converted as the config says."""
    values = _array(column, arrays, key)
    # Text is left whole: `take`, `shape` and `dtype` are about numbers.
    if values.dtype.kind in "US":
        return Listed(_texts(values, name, key), "text")
    if values.ndim == 0:
        raise DataError(f"column {name!r} is a single number, needs samples first", key=key)
    if column.take is not None:
        values = _take(values, column.take, (*key, "take"))
    # numpy would also reshape `(H, W, C)` to `(C, H, W)`, which mixes up the channels without an
    # error.
    if column.shape is not None:
        refuse_scrambling(values.shape[1:], column.shape, (*key, "shape"))
        try:
            values = values.reshape(len(values), *column.shape)
        except ValueError as error:
            raise DataError(
                f"cannot give samples of shape {values.shape[1:]} the shape {column.shape}",
                key=(*key, "shape"),
            ) from error
    return Numbers(as_tensor(_cast(values, column.dtype, (*key, "dtype")), name))


def _texts(values: Array, name: str, key: Key) -> list[str]:
    """Return an array of text or bytes as a list of texts."""
    try:
        return [str(text) for text in values.astype(str).tolist()]
    except (ValueError, SystemError) as error:  # bytes over 127, or a number that is no character
        raise DataError(
            f"column {name!r} holds text that cannot be read: its bytes are not ASCII, or a "
            "number in it is no character",
            hint="save the array as text of numpy's kind U, made by .decode() from the bytes",
            key=key,
        ) from error


def _array(column: ArrayColumn, arrays: dict[str, Array], key: Key) -> Array:
    """Return the array that a column names; the only one if it names none."""
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


def _take(values: Array, text: str, key: Key) -> Array:
    """Return the part of the second axis that `take` names."""
    if values.ndim < 2:
        raise DataError("the array has a single axis, there is nothing to take from", key=key)
    if ":" in text:
        return values[:, slice(*(int(part) if part else None for part in text.split(":")))]
    try:
        return values[:, int(text)]
    except IndexError as error:
        raise DataError(f"no position {text} among {values.shape[1]}", key=key) from error


def _cast(values: Array, dtype: str | None, key: Key) -> Array:
    """Return numbers as another type; raise if a whole number would change."""
    if dtype is None:
        return values
    # Numbers that do not fit are found below, and told better than by numpy's warning.
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
    if dtype != "float32" and not np.array_equal(cast, values):
        raise DataError(f"some numbers do not fit {dtype}", key=key)
    return cast
