"""The folder of one store: its files, their sizes, and the lock that shows that it is in use.

Whoever creates, changes or removes a store holds the lock of the store directory meanwhile
(`directory.py`). The lock here is another one: each process that uses the store shares it.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune import disk
from finetune.reading import read_at_most
from finetune.store.layout import Meta, StoreError, os_errors_named
from finetune.whole_folders import holds_only, refuse_foreign

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_ASIDE = re.compile(rf"\.(?:new|old)-\d+-{_KEY.pattern}")
"""Temporary names of stores that are being created or removed."""
_FILLED = re.compile(rf"\.filled-\d+-{_KEY.pattern}")
"""Temporary names of tables that are being written; the process locks them meanwhile."""
FILES = re.compile(
    r"lock|seals|index|rows-\d+|meta\.json|verdicts|verdicts-\d+|\.verdicts\.tmp-\d+"
    r"|table\.arrow|table\.json|\.table\.json\.tmp-\d+"
    r"|hashes-[0-9a-f]{32}|\.hashes-[0-9a-f]{32}\.tmp-\d+"
)
"""Names of all files of a store. A folder with any other file is not ours."""
TABLE = "table.arrow"
"""Name of the file with the cells of a table."""
_LARGEST_META = 16 << 20
_READ_AT_ONCE = 1 << 20
"""Bytes that are counted in one piece."""


def folder_of(root: Path, key: str) -> Path:
    """Return the folder of a store.

    Raises:
        StoreError: the key is not a valid folder name.
    """
    if not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is no key of a store")
    return root / key


def is_store(path: Path) -> bool:
    """Tell whether a path is the folder of a store, with no file that is not ours."""
    return (
        _KEY.fullmatch(path.name) is not None
        and holds_only(path, FILES)
        and disk.is_own_file(path / "lock")
        and disk.is_own_file(path / "seals")
    )


def is_leftover(path: Path) -> bool:
    """Tell whether a path is what a killed process left while it created or removed a store."""
    # A table is filled without the lock of the directory: its writer may live.
    is_left = _ASIDE.fullmatch(path.name) or (_FILLED.fullmatch(path.name) and not is_in_use(path))
    return bool(is_left) and holds_only(path, FILES)


def read_meta(folder: Path) -> Meta:
    """Read `meta.json` of a store.

    Raises:
        StoreError: it is missing or cannot be read.
    """
    path = folder / "meta.json"
    with os_errors_named(path), disk.open_to_read(path) as file:
        return Meta.from_json(read_at_most(file, _LARGEST_META).decode("utf-8", errors="replace"))


def num_written(folder: Path) -> int:
    """Return the number of written rows, damaged or not; 0 if there is no such store."""
    count = 0
    try:
        with disk.open_to_read(folder / "seals") as file:
            # In pieces, since a damaged file may be larger than memory.
            while piece := file.read(_READ_AT_ONCE):
                count += int(np.count_nonzero(np.frombuffer(piece, np.uint64, len(piece) // 8)))
    except OSError:
        return 0
    return count


def size_of(folder: Path) -> int:
    """Return the bytes that the files of a store take on disk now."""
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just put it in its place
            total += path.lstat().st_blocks * 512
    return total


def fault_of(folder: Path, wanted: Meta) -> str | None:
    """Return why a whole store cannot be used, or None. Damaged rows are not a reason."""
    try:
        fault = read_meta(folder).difference(wanted)
    except StoreError as error:
        return error.message
    # `meta.json` is right, but a file may be gone: opening it would fail in the middle of a run.
    names = ("lock", *wanted.layout.files())
    missing = [name for name in names if not disk.is_own_file(folder / name)]
    return fault or (f"{missing[0]} is missing" if missing else None)


def removed_if_unusable(folder: Path, wanted: Meta) -> list[str]:
    """Remove a store that cannot be used; return the reason as a line, none if it stays.

    Raises:
        StoreError: the folder is not ours, or another process uses the store.
    """
    if disk.kind_of(folder) is None:
        return []
    if not holds_only(folder, FILES):
        raise StoreError("is not a folder that finetune made", where=str(folder), hint="remove it")
    fault = fault_of(folder, wanted)
    if fault is None:
        return []
    if not remove_unless_in_use(folder):
        raise StoreError(f"{fault}, and another process has it open", where=str(folder))
    return [f"store {folder.name}: {fault}; everything is recomputed"]


def make_empty(folder: Path, meta: Meta) -> None:
    """Create an empty store under a temporary name, then rename it."""
    # It gets its own name only when it is complete: a kill leaves no incomplete store.
    aside = folder.with_name(f".new-{os.getpid()}-{folder.name}")
    refuse_foreign(aside, FILES)
    disk.remove(aside)
    disk.make_folder(aside, 0o700)
    try:
        for name, size in {"lock": 0, **meta.layout.files()}.items():
            with disk.open_new(aside / name) as file:
                file.truncate(size)
        disk.write_new(aside / "meta.json", meta.to_json().encode())
        disk.rename(aside, folder)
    finally:
        disk.remove(aside)


def remove_leftovers(folder: Path, wanted: Meta) -> None:
    """Remove leftovers of a killed process; truncate ragged files if no row is written.

    Does nothing if a process uses the store.
    """
    if is_in_use(folder):
        return
    for path in (*folder.glob("verdicts-*"), *folder.glob(".verdicts.tmp-*")):
        disk.remove(path)
    if not wanted.layout.ragged:
        return
    with disk.open_to_read(folder / "seals") as file:
        if any(file.read()):
            return
    for name, size in wanted.layout.files().items():
        if size == 0:
            _resize(folder / name, 0)


def restore_sizes(folder: Path, wanted: Meta) -> list[str]:
    """Restore the size of fixed-size files. The zeros that fill them match no checksum."""
    notes = []
    for name, size in wanted.layout.files().items():
        actual = (folder / name).stat().st_size
        if size and actual != size:
            _resize(folder / name, size)
            lost = f"{name!r} has {actual:,} bytes, needs {size:,}"
            notes.append(f"store {folder.name}: {lost}; damaged rows are recomputed")
    return notes


def remove_unless_in_use(folder: Path) -> bool:
    """Remove a store and return True; False if a process uses it."""
    # Nobody can begin to use it in between: the caller holds the lock of the directory.
    if is_in_use(folder):
        return False
    remove_whole(folder)
    return True


def remove_whole(folder: Path) -> None:
    """Remove a store, used or not.

    It is renamed first, so that no process sees it partly removed.
    """
    aside = folder.with_name(f".old-{os.getpid()}-{folder.name}")
    refuse_foreign(aside, FILES)
    disk.remove(aside)
    disk.rename(folder, aside)
    disk.remove(aside)


def is_in_use(folder: Path) -> bool:
    """Tell whether a process has the store open, or its table mapped into memory."""
    return any(_is_locked(folder / name) for name in ("lock", TABLE))


def hold(file: BinaryIO) -> None:
    """Mark a table as in use for as long as its open file, or memory mapped from it, lasts."""
    # The system releases the lock when the last copy of the descriptor is closed. `mmap` holds a
    # copy, and so does every process that was forked meanwhile: nobody has to say that it is done.
    fcntl.flock(file, fcntl.LOCK_SH)


def touch(folder: Path) -> None:
    """Note that a store is used now, for LRU eviction; nothing happens if it cannot be written."""
    with suppress(OSError), opened_to_change(folder / "lock") as lock:
        os.utime(lock)


def _is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock on a file."""
    if not disk.is_own_file(path):
        return False
    # Each process that uses a store holds a shared lock, which the system releases at its end.
    with opened_to_change(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _resize(path: Path, size: int) -> None:
    with opened_to_change(path) as descriptor:
        os.ftruncate(descriptor, size)


@contextmanager
def opened_to_change(path: Path, *, make: bool = False) -> Iterator[int]:
    """Yield a file descriptor, closed afterwards, which gives up a lock that is taken by it."""
    descriptor = disk.descriptor_to_change(path, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
