"""Recognise a file by its first bytes: gzip, Parquet, text in some encoding, or no table."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from finetune.data.readers.kept_stream import kept
from finetune.errors import DataError
from finetune.reading import A_POINTER, POINTER

TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""Endings of files that count as tables whatever they contain; each may be followed by `.gz`."""
_HEAD_BYTES = 4096
_READ_AT_ONCE = 1 << 20
_LARGE_BYTES = 1 << 30
_MAX_RATIO = 200
"""Most times that compressed data may grow, from `_LARGE_BYTES` on. Zip and gzip reach 1032."""
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_MARKS = (
    # UTF-32 first, since its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KNOWN = (
    (POINTER, A_POINTER),
    (b"PK\x03\x04", "a zip archive (.npz, .xlsx, .zip)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x93NUMPY", "an array (.npy)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"fLaC", "sound (FLAC)"),
    (b"OggS", "sound (Ogg)"),
    (b"ID3", "sound (MP3)"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an Office document (.xls, .doc)"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ARROW1", "an Arrow or Feather file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ\0", "packed by xz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
)
_RIFF = {b"WAVE": "sound (WAV)", b"WEBP": "a WebP image", b"AVI ": "a film (AVI)"}


@dataclass(frozen=True, slots=True)
class Content:
    """What a file contains.

    Args:
        encoding: Encoding of its text, including a byte order mark; None if it is not text.
        is_parquet: Whether it is a Parquet file.
        other: What it is, in words, if it is neither.
        is_told: Whether the file itself shows the encoding.
    """

    encoding: str | None
    is_parquet: bool = False
    other: str | None = None
    is_told: bool = False


def has_table_ending(path: Path) -> bool:
    """Tell whether a file's name is that of a table."""
    return path.name.lower().removesuffix(".gz").endswith(TABLE_ENDINGS)


def content_of_bytes(head: bytes, encoding: str) -> Content:
    """Return what a file contains, by its first bytes.

    Args:
        head: The first bytes.
        encoding: Encoding of text that does not show its own.
    """
    if head.startswith(_PARQUET):
        return Content(None, is_parquet=True)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Content(name, is_told=True)
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return Content(None, other=_RIFF[head[8:12]])
    for magic, words in _KNOWN:
        if head.startswith(magic) and not _may_be_text(magic, head):
            return Content(None, other=words)
    if wide := _wide(head):
        return Content(wide, is_told=True)
    return Content(encoding)


@contextmanager
def opened_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file so that it can be read twice; decompress it if it is gzip.

    Raises:
        DataError: it cannot be read or decompressed, or grows to far more than its size.
    """
    try:
        with path.open("rb") as raw:
            file = cast("BinaryIO", raw) if raw.seekable() else kept(raw, str(path))
            yield unpacked(file, str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read {str(path)!r}: {reason}") from error


def unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """Return a file, or its decompressed contents if it is gzip.

    Raises:
        DataError: it cannot be decompressed, or grows to far more than its size.
    """
    # By its first bytes: a stream has no name, and the ending of a name may be wrong.
    begins = file.read(2)
    file.seek(0)
    if begins != _GZIP:
        return file
    try:
        refuse_gzip_bomb(file)
        packed = cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
        head_of(packed)  # a file that only begins like gzip fails here, with its name
        return packed
    except (OSError, EOFError, zlib.error) as error:
        raise damaged_gzip(name, error) from error


def damaged_gzip(name: str, error: Exception) -> DataError:
    """Return the error for a file that cannot be decompressed."""
    return DataError(f"is packed by gzip and damaged: {error}", where=name)


def refuse_gzip_bomb(file: BinaryIO) -> None:
    """Decompress a gzip file without keeping the data, then move back to its beginning.

    Raises:
        DataError: it grows to far more than its size.
        OSError, EOFError, zlib.error: it is damaged.
    """
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    # gzip grows by at most 1032: a small file can do no harm, and need not be read twice.
    if size_bytes * 1032 <= _LARGE_BYTES:
        return
    unpacked_bytes = 0
    with gzip.GzipFile(fileobj=file, mode="rb") as packed:
        while part := packed.read(_READ_AT_ONCE):
            unpacked_bytes += len(part)
            refuse_bomb(unpacked_bytes, size_bytes)
    file.seek(0)


def refuse_bomb(unpacked_bytes: int, size_bytes: int) -> None:
    """Raise `DataError` if decompressed data is far larger than the file."""
    if unpacked_bytes > max(_LARGE_BYTES, _MAX_RATIO * size_bytes):
        raise DataError(
            f"its {size_bytes} bytes unpack to {unpacked_bytes} or more, over {_MAX_RATIO} times "
            "as many",
            hint="if you trust it, unpack it yourself; arrays by numpy.savez, which does not pack",
        )


def head_of(file: BinaryIO) -> bytes:
    """Return the first bytes of a file; its position is restored."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    return head


def decodes(file: BinaryIO, encoding: str) -> bool:
    """Tell whether an encoding decodes all of a file, in portions; the file is rewound."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while part := file.read(_READ_AT_ONCE):
            decoder.decode(part)
        # Only this call notices a character that is cut off at the end of the file.
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    finally:
        file.seek(0)
    return True


@contextmanager
def text_of(
    file: BinaryIO, encoding: str, name: str, errors: str = "strict"
) -> Iterator[io.TextIOWrapper]:
    """Yield a file as text, with its line breaks unchanged; `errors` as in `open`.

    Raises:
        DataError: it is not valid in the encoding; the message names line and byte.
    """
    try:
        # `newline=""`, as the reader of csv needs it: quoted cells keep their own line breaks.
        text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
        try:
            yield text
        finally:
            # Detached, not closed: the caller reads the file again.
            text.detach()
    except UnicodeDecodeError as error:
        raise _not_valid(file, encoding, name) from error
    except UnicodeError as error:  # from the codec itself, such as a missing mark of UTF-16
        raise DataError(f"is not valid {encoding}: {error}", where=name) from error
    except LookupError as error:
        raise DataError(f"no encoding {encoding!r}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(name, error) from error


def _not_valid(file: BinaryIO, encoding: str, name: str) -> DataError:
    """Return the error that names the first invalid byte and its line."""
    # The decoder works in portions and counts from the beginning of one: the place is found anew.
    file.seek(0)
    raw = file.read()
    where, told = name, ""
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = f"{name}:{line}"
        told = f": byte 0x{raw[error.start]:02x}" if error.start < len(raw) else ""
    return DataError(
        f"is not valid {encoding}{told}",
        hint="convert the file to utf-8, or name its encoding: encoding: latin-1",
        where=where,
    )


def _wide(head: bytes) -> str | None:
    """Return the UTF-16 encoding of text without a mark, by its zero bytes; None for other text."""
    even, odd = head[0::2], head[1::2]
    if len(head) < 4 or b"\0" not in head:
        return None
    # Text in Latin letters has a zero in every other byte; binary data has zeros anywhere.
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if b"\0" not in others and zeros.count(0) * 2 > len(zeros):
            return name
    return None


def _may_be_text(magic: bytes, head: bytes) -> bool:
    """Tell whether a text begins like another file, which has bytes that text never has."""
    # A text may begin with `BZh` or `ID3`; a pointer is text itself, and never the data.
    return magic.isascii() and magic != POINTER and not _has_binary(head)


_OF_TEXT = bytes([*range(9, 14), *range(27, 128)])
"""White space, and what ASCII has from Escape on."""


def _has_binary(head: bytes) -> bool:
    """Tell whether bytes are not text: control characters, or bytes over 127."""
    return head.translate(None, _OF_TEXT) != b""
