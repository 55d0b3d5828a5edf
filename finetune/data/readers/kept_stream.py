"""The bytes of a stream that can be read only once, kept to be read again."""

import io
import mmap
import tempfile
from typing import Any, BinaryIO, cast

from finetune.errors import DataError
from finetune.reading import MAX_JSON_BYTES

_READ_AT_ONCE = 1 << 20
_IN_MEMORY = 1 << 26
"""Most bytes that are kept in memory; more of them go to a temporary file."""


def kept(stream: Any, name: str) -> BinaryIO:
    """Return the contents of a stream that can be read only once, kept in memory or on disk.

    Raises:
        DataError: a line is too long.
    """
    line, length = 1, 0
    # The file has no name, and vanishes with the last map of it.
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        # In portions, so that a line without an end is noticed before the disk is full.
        while part := stream.read(_READ_AT_ONCE):
            file.write(part)
            line += part.count(b"\n")
            length = len(part) - part.rfind(b"\n") - 1 if b"\n" in part else length + len(part)
            if length > MAX_JSON_BYTES:
                raise DataError(
                    f"is longer than {MAX_JSON_BYTES >> 20} MiB", where=f"{name}:{line}"
                )
        size = file.tell()
        file.seek(0)
        if size <= _IN_MEMORY:
            return io.BytesIO(file.read())
        # A map shows what is in the file, and not what Python still holds of it.
        file.flush()
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        return cast("BinaryIO", io.BufferedReader(_Mapped(mapped), _READ_AT_ONCE))


class _Mapped(io.RawIOBase):
    """The bytes of a map as a file; unlike a file it needs no closing."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._mapped.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self._mapped)}[whence]
        self._mapped.seek(start + offset)
        return self._mapped.tell()

    def tell(self) -> int:
        return self._mapped.tell()
