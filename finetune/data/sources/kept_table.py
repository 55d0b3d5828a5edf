"""The folder of a table in the cache: cells, what is known of them, what is made of them."""

import json
import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.reading import read_at_most
from finetune.store.audit import Audit
from finetune.store.directory import Entry, remove_store
from finetune.store.layout import StoreError
from finetune.store.store_folder import TABLE

RECORD = "table.json"
_HASHES = "hashes-"
_DIGEST_BYTES = 16
_LARGEST_RECORD = 16 << 20


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
            # The number of the process keeps apart what two runs write for one table at once.
            disk.replace_file(self._path(key), _digest(content) + content, str(os.getpid()))
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self.folder / f"{_HASHES}{key}"


def read_record(folder: Path) -> dict[str, Any]:
    """Return what is known about a kept table.

    Raises:
        OSError, ValueError: there is nothing, or it is damaged.
    """
    with disk.open_to_read(folder / RECORD) as file:
        # A damaged file, or a stranger's, may be of any size.
        digest, _, text = read_at_most(file, _LARGEST_RECORD).partition(b"\n")
    if digest.decode("ascii") != _digest(text).hex():
        raise ValueError("damaged")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no record")
    return found


def record_bytes(record: dict[str, Any]) -> bytes:
    """Return a record with its digest before it: a flipped bit could make another table of it."""
    text = json.dumps(record).encode()
    return _digest(text).hex().encode() + b"\n" + text


def is_table(entry: Entry) -> bool:
    """Tell whether an entry of the store directory is a table, and no store of rows."""
    return any(disk.is_file(entry.folder / name) for name in (TABLE, RECORD))


def audit_table(root: Path, entry: Entry) -> Audit:
    """Verify the files of a kept table; a damaged one is removed, to be parsed when it is needed.

    Args:
        root: The folder of all stores.
        entry: The table.
    """
    rows = 0 if entry.meta is None else entry.meta.layout.num_rows
    notes = ["meta.json cannot be read"] if entry.meta is None else []
    if fault := _fault_of(entry.folder):
        return Audit(0, rows, (*notes, f"{fault}: the table is {_dropped(root, entry)}"))
    kept = KeptTable(entry.folder, "")
    notes += [
        f"{path.name} is damaged: the hashes of the rows are made again"
        for path in sorted(entry.folder.glob(f"{_HASHES}*"))
        if kept.get(path.name.removeprefix(_HASHES)) is None
    ]
    return Audit(rows, 0, tuple(notes))


def _fault_of(folder: Path) -> str | None:
    """Return which file of a table is damaged; None if it is whole."""
    try:
        digest = read_record(folder)["digest"]
    except (OSError, ValueError, LookupError):
        return f"{RECORD} is missing or damaged"
    try:
        return None if disk.digest_of(folder / TABLE) == digest else f"{TABLE} is damaged"
    except OSError as error:
        return f"{TABLE} cannot be read, {disk.reason_of(error)}"


def _dropped(root: Path, entry: Entry) -> str:
    """Remove a damaged table, and say what will be; it may be in use."""
    try:
        # First of all: without its record no later start takes the table for whole.
        disk.remove(entry.folder / RECORD)
        is_gone = remove_store(root, entry.key)
    except (OSError, StoreError) as error:
        reason = disk.reason_of(error) if isinstance(error, OSError) else error.in_one_line
        return f"left there, {reason}"
    return "removed" if is_gone else "parsed anew at the next start; a process has it open"


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES).digest()
