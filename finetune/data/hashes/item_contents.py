"""What is known of the contents of a column's items; files may be hashed when they are first read.

Letters: N items of a column.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from finetune.data.hashes.contents import (
    HASH_BYTES,
    Contents,
    State,
    as_hashes,
    hash_file,
    read_contents,
    reader_of,
)
from finetune.data.hashes.known_files import KnownFiles
from finetune.errors import DataError

_ROW = np.dtype([("state", "<i8", 4), ("hash", "u1", HASH_BYTES), ("is_known", "u1")])

Known = Callable[[BinaryIO], tuple[State, bytes]]
"""Returns state and hash that an open file must have."""


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
        self._what, self._skips = "image", False
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
        what: str = "image",
        *,
        skips: bool = False,
    ) -> "ItemContents":
        """Return contents that are read later, of files that were only listed.

        Args:
            paths: The files.
            sizes: Their sizes in bytes.
            names: A hash of name and size of each.
            files: Hashes of files from earlier runs; None to read all files.
            what: What they are, for messages.
            skips: Whether files that cannot be read are skipped.
        """
        found = cls(len(paths))
        found._what, found._skips = what, skips
        found._paths, found._sizes, found._files, found.names = paths, sizes, files, names
        return found

    @property
    def is_complete(self) -> bool:
        """Whether the contents of all items are known."""
        return bool(self._rows["is_known"].all())

    def hash_of(self, position: int) -> bytes:
        """Return the hash of an item whose contents are known."""
        return bytes(self._rows["hash"][position])

    def hashes(self, order: Sequence[int]) -> list[bytes]:
        """Return the hashes of items whose contents are known, at some positions."""
        return [self.hash_of(position) for position in order]

    def identities(self, order: Sequence[int]) -> list[bytes]:
        """Return what identifies the items at some positions: hashes of contents, or of names."""
        if self.names is None:
            return self.hashes(order)
        return [self.names[position] for position in order]

    def of_file(self, position: int, file: BinaryIO) -> tuple[State, bytes]:
        """Return state and hash that an open file must have: those of its first reading.

        If this is the first one, the file is hashed, which moves the position in it.

        Raises:
            DataError: it has another size than when it was listed, or is being written.
            OSError: it cannot be read.
        """
        if not self._rows["is_known"][position]:
            path = self._paths[position]
            # Name and size are all that identifies it so far, and part of the data's fingerprint.
            if os.fstat(file.fileno()).st_size != self._sizes[position]:
                raise another_one(str(path), self._what)
            digest, state = hash_file(file, str(path), self._what)
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
        # A file may have changed since it was read for a batch: samples of both would be mixed.
        differs = (self._rows["hash"] != found.hashes.numpy()).any(1) & known
        if differs.any():
            raise another_one(str(self._paths[int(differs.argmax())]), self._what)
        self._rows["state"][~known] = found.states.numpy()[~known]
        self._rows["hash"][~known] = found.hashes.numpy()[~known]
        self._rows["is_known"] = 1

    def _read(self) -> Contents:
        """Return the hashes of all files, those of earlier runs without reading them."""
        if self._files is None:
            return reader_of(self._what, skips=self._skips)(self._paths)
        return self._files.contents(self._paths, self._what, skips=self._skips)

    def _put(self, position: int, state: State, digest: bytes) -> None:
        """Write what is known of an item."""
        self._rows["state"][position] = state
        self._rows["hash"][position] = np.frombuffer(digest, np.uint8)
        # The mark comes last: whoever sees it finds state and hash.
        self._rows["is_known"][position] = 1


def contents_of(
    items: Sequence[Any],
    files: KnownFiles | None,
    what: str,
    digest: Callable[[Any], bytes],
) -> ItemContents:
    """Return the contents of all items, read now.

    Args:
        items: Paths, or what is in memory.
        files: Hashes of files from earlier runs; None to read every file.
        what: What the items are, for messages.
        digest: Returns the hash of an item in memory.

    Raises:
        DataError: an item is missing or cannot be read. The message names it.
    """
    if is_of_files(items):
        known = read_contents(items, what) if files is None else files.contents(items, what)
        return ItemContents.of(known)
    # Items in memory have no state that could tell of a change; their hash is compared when read.
    hashes = as_hashes([digest(item) for item in items])
    return ItemContents.of(Contents(hashes, torch.zeros(len(hashes), 4).long()))


def is_of_files(items: Sequence[Any]) -> bool:
    """Tell whether all items are paths of files."""
    return all(isinstance(item, Path) for item in items)


def another_one(name: str, what: str = "image") -> DataError:
    """Return the error for a file whose contents changed while a run uses it."""
    error = DataError(
        f"the {what} {name!r} has changed since the data was opened",
        hint="start the command again; what was stored of the old one is not used",
    )
    error.is_of_change = True
    return error
