"""The folder of a table in the cache: what is made of its rows is stored beside its cells."""

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from finetune import disk

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class KeptTable:
    """A table whose source has not changed.

    Args:
        folder: Its folder. Another process may put a newer table there at any time.
        contents: Digest of its cells, so that nothing made of them is taken for another table's.
    """

    folder: Path
    contents: str

    def get(self, key: str) -> bytes | None:
        """Return what was stored under a key; None if it is not there, or damaged."""
        try:
            with disk.open_to_read(self._path(key)) as file:
                digest, content = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        return content if _digest(content) == digest else None

    def put(self, key: str, content: bytes) -> None:
        """Store something; nothing happens where the disk refuses, since all can be made again."""
        try:
            disk.replace_file(self._path(key), _digest(content) + content, str(os.getpid()))
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self.folder / f"hashes-{key}"


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES).digest()
