"""What is known of the contents of a column's items; files may be hashed when they are first read.

Letters: N items of a column.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.data.contents import (
    HASH_BYTES,
    Contents,
    KnownFiles,
    State,
    contents_if_readable,
    hash_file,
    read_contents,
)
from finetune.errors import DataError

_ROW = np.dtype([("state", "<i8", 4), ("hash", "u1", HASH_BYTES), ("is_known", "u1")])


class ItemContents:
    """Hashes of a column's items, shared by all processes that are forked from this one.

    Args:
        count: Number of items.
    """

    def __init__(self, count: int) -> None:
        # Without a name, and shared: a worker process that reads a file tells all others its hash.
        self._rows = np.frombuffer(mmap.mmap(-1, max(1, count * _ROW.itemsize)), _ROW, count)
        self._paths: Sequence[Path] = ()
        self._sizes: Sequence[int] = ()
        self._files: KnownFiles | None = None
        self._skips = False
        self.names: Sequence[bytes] | None = None
        """A hash of name and size of each file, if these identify the samples of the run."""

    @classmethod
    def of(cls, contents: Contents) -> "ItemContents":
        """Return contents that are all known."""
        found = cls(len(contents.hashes))
        found._rows["state"], found._rows["hash"] = contents.states, contents.hashes
        found._rows["is_known"] = 1
        return found

    @classmethod
    def listed(
        cls,
        paths: Sequence[Path],
        sizes: Sequence[int],
        names: Sequence[bytes],
        files: KnownFiles | None,
        *,
        skips: bool = False,
    ) -> "ItemContents":
        """Return contents that are read later, of files that were only listed.

        Args:
            paths: The files.
            sizes: Their sizes in bytes.
            names: A hash of name and size of each.
            files: Hashes of files from earlier runs; None to read all files.
            skips: Whether files that cannot be read are skipped.
        """
        found = cls(len(paths))
        found._skips = skips
        found._paths, found._sizes, found._files, found.names = paths, sizes, files, names
        return found

    @property
    def is_complete(self) -> bool:
        """Whether the contents of all items are known."""
        return bool(self._rows["is_known"].all())

    def hash_of(self, position: int) -> bytes:
        """Return the hash of an item whose contents are known."""
        return bytes(self._rows["hash"][position])

    def of_file(self, position: int, file: BinaryIO) -> tuple[State, bytes]:
        """Return state and hash that an open file must have: those of its first reading.

        If this is the first one, the file is hashed, which moves the position in it.

        Raises:
            DataError: it has another size than when it was listed, or is being written.
            OSError: it cannot be read.
        """
        if not self._rows["is_known"][position]:
            path = self._paths[position]
            if os.fstat(file.fileno()).st_size != self._sizes[position]:
                raise another_one(str(path))
            digest, state = hash_file(file, str(path))
            file.seek(0)
            self._put(position, state, digest)
        size, modified, changed, entry = self._rows["state"][position].tolist()
        return (size, modified, changed, entry), self.hash_of(position)

    def complete(self, tell: Callable[[str], None]) -> None:
        """Read all files whose contents are not known yet, but for those of earlier runs.

        Args:
            tell: Receives lines for the user.

        Raises:
            DataError: a file cannot be read, or differs from when it was read before.
        """
        if self.is_complete:
            return
        size = sum(self._sizes)
        tell(f"reads {len(self._paths):,} files ({size / 2**30:.2f} GiB) to know their contents")
        found = self._read()
        for note in () if self._files is None else self._files.take_notes():
            tell(note)
        known = self._rows["is_known"].astype(bool)
        differs = (self._rows["hash"] != found.hashes.numpy()).any(1) & known
        if differs.any():
            raise another_one(str(self._paths[int(differs.argmax())]))
        self._rows["state"][~known] = found.states.numpy()[~known]
        self._rows["hash"][~known] = found.hashes.numpy()[~known]
        self._rows["is_known"] = 1

    def _read(self) -> Contents:
        """Return the hashes of all files; those of earlier runs if every file can be read."""
        try:
            if self._files is not None:
                return self._files.contents(self._paths)
            return read_contents(self._paths)
        except DataError:
            if not self._skips:
                raise
            return contents_if_readable(self._paths)

    def _put(self, position: int, state: State, digest: bytes) -> None:
        """Write what is known of an item."""
        self._rows["state"][position] = state
        self._rows["hash"][position] = np.frombuffer(digest, np.uint8)
        # The mark comes last: whoever sees it finds state and hash.
        self._rows["is_known"][position] = 1


def another_one(name: str, what: str = "image") -> DataError:
    """Return the error for a file whose contents changed while a run uses it."""
    error = DataError(
        f"the {what} {name!r} has changed since the data was opened",
        hint="start the command again; what was stored of the old one is not used",
    )
    error.is_of_change = True
    return error
