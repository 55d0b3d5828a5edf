"""The store directory: the folder of all stores, with locks and removal of unused ones.

Each store is a folder named by its key. A process that uses one holds a shared lock on its file
`lock`, so a store in use is never removed. Opening, creating and removing a store happens under
the lock of the whole directory, so no process sees a store half created or half removed. What is
done inside the folder of one store is in `store_folder.py`.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.store.layout import Meta, StoreError, os_errors_named
from finetune.store.store_folder import (
    FILES,
    fault_of,
    folder_of,
    is_in_use,
    is_leftover,
    is_store,
    make_empty,
    num_written,
    opened_to_change,
    read_meta,
    remove_leftovers,
    remove_unless_in_use,
    remove_whole,
    removed_if_unusable,
    restore_sizes,
    size_of,
)
from finetune.whole_folders import holds_only, refuse_foreign


@dataclass(frozen=True, slots=True)
class Entry:
    """One store of the directory, as `finetune cache ls` shows it."""

    key: str
    folder: Path
    size_bytes: int
    """Bytes that it takes on disk now: its files are sparse and grow with the rows."""
    last_used: float
    """Seconds since 1970."""
    in_use: bool
    """Whether some process has it open."""
    meta: Meta | None
    """None if it cannot be read: such a store is created anew when it is next needed."""
    num_written: int
    """Number of written rows."""

    @property
    def promised_bytes(self) -> int:
        """Bytes that it will take when every row is written."""
        if self.meta is None or self.num_written >= self.meta.layout.num_rows:
            return self.size_bytes
        return max(self.size_bytes, self.meta.layout.size_bytes)


@dataclass(frozen=True, slots=True)
class Claim:
    """The lock of this process on a store."""

    folder: Path
    lock: int
    """File descriptor of the shared lock. Closing it releases the store."""
    notes: tuple[str, ...]
    """What was done to this and other stores, one line each."""
    is_damaged: bool
    """Whether a file had a wrong size, so that rows are missing."""
    is_use: bool = True
    """Whether closing updates the last-used time (for LRU eviction)."""

    def give_up(self) -> None:
        """Update the last-used time and release the lock."""
        if self.is_use:
            with suppress(OSError):  # a disk that cannot be written
                os.utime(self.lock)
        # Unlocked explicitly: forked processes hold the same lock, and would keep it.
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        os.close(self.lock)


def cache_root() -> Path:
    """Return the folder of all stores: `FINETUNE_CACHE`, or below the user's cache folder.

    Raises:
        StoreError: the system knows of no such folder.
    """
    try:
        if own := os.environ.get("FINETUNE_CACHE"):
            return Path(own).expanduser().absolute()
        xdg = Path(os.environ.get("XDG_CACHE_HOME") or ".")
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "finetune" / "prefix"
    except RuntimeError as error:  # nobody says where home is
        raise StoreError(str(error), hint="FINETUNE_CACHE names a folder for stores") from error


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the key of a store: a hash of `facts`, which must be JSON."""
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def entries(root: Path) -> list[Entry]:
    """Return all stores, the most recently used first. Anything else in `root` is ignored.

    Raises:
        StoreError: the folder cannot be read or locked.
    """
    if not root.is_dir():
        return []
    with os_errors_named(root), _directory_locked(root):
        return _entries(root)


def claim_store(root: Path, wanted: Meta, disk_bytes: float, *, evicts: bool = True) -> Claim:
    """Lock the store of `wanted.key`; create it if there is none that can be used.

    If it `evicts`, other stores are removed, the least recently used first, until this one fits
    into `disk_bytes` and on the disk. Stores in use stay. If this store has outgrown its expected
    size, others are removed for that too, as far as possible.

    Raises:
        StoreError: it does not fit, even with all others removed, or the folder cannot be used.
    """
    folder = folder_of(root, wanted.key)
    with os_errors_named(folder), _directory_locked(root):
        # First: what cannot be used would count as room that is taken.
        notes = removed_if_unusable(folder, wanted)
        notes += _make_room(root, folder, wanted, disk_bytes, evicts=evicts)
        if folder.exists():
            remove_leftovers(folder, wanted)
        else:
            make_empty(folder, wanted)
        claim = _claimed(folder, wanted, notes)
        os.utime(claim.lock)
    return claim


def claim_as_it_is(root: Path, wanted: Meta) -> Claim:
    """Lock a store to inspect it: nothing is removed or created, and its last-used time stays.

    Truncated files get their size back; otherwise their rows could not be read.

    Raises:
        StoreError: it is gone, or cannot be used.
    """
    folder = folder_of(root, wanted.key)
    with os_errors_named(folder), _directory_locked(root):
        if folder not in _folders(root):
            raise StoreError("is gone")
        if fault := fault_of(folder, wanted):
            raise StoreError(fault)
        return _claimed(folder, wanted, (), is_use=False)


def _claimed(folder: Path, wanted: Meta, notes: Sequence[str], *, is_use: bool = True) -> Claim:
    """Take the shared lock of a store that has all its files."""
    resized = restore_sizes(folder, wanted)
    lock = disk.descriptor_to_change(folder / "lock")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return Claim(folder, lock, (*notes, *resized), bool(resized), is_use)


@contextmanager
def filled_aside(root: Path, key: str) -> Iterator[Path]:
    """Yield a folder to fill with files of a table; it is removed afterwards if it is still there.

    Nobody else sees it until `place_filled` gives it its name.

    Raises:
        StoreError: the folder cannot be made.
    """
    aside = root / f".filled-{os.getpid()}-{key}"
    with os_errors_named(aside), _directory_locked(root):
        refuse_foreign(aside, FILES)
        disk.remove(aside)
        disk.make_folder(aside, 0o700)
        for name in ("lock", "seals"):
            disk.write_new(aside / name, b"")
        lock = disk.descriptor_to_change(aside / "lock")
        # Tells other processes that its writer lives.
        fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield aside
    finally:
        os.close(lock)
        with suppress(OSError):
            disk.remove(aside)


def place_filled(aside: Path, meta: Meta, disk_bytes: float) -> Path:
    """Give a filled folder the name of its key, durably; a folder of that name is removed.

    Args:
        aside: A folder of `filled_aside`; its files are on the disk.
        meta: What is in it.
        disk_bytes: Bytes that all stores together may take.

    Raises:
        StoreError: it does not fit, since no store is removed for it; or it cannot be placed.
    """
    folder = folder_of(aside.parent, meta.key)
    with os_errors_named(folder), _directory_locked(aside.parent):
        if folder.exists():
            if not holds_only(folder, FILES):
                raise StoreError("is no folder of ours", where=str(folder))
            # In use or not: whoever has mapped the older table keeps its pages until it ends.
            remove_whole(folder)
        taken = sum(entry.size_bytes for entry in _entries(aside.parent))
        if (needed := size_of(aside)) + taken > disk_bytes:
            raise StoreError(
                f"needs {_gib(needed)}, the budget has {_gib(disk_bytes - taken)} left",
                hint="disk_gb is the budget of all stores, `finetune cache ls` lists them",
            )
        disk.write_new(aside / "meta.json", meta.to_json().encode())
        disk.sync(aside)
        disk.rename(aside, folder)
        disk.sync(aside.parent)
    return folder


def remove_store(root: Path, key: str) -> bool:
    """Remove a store; return False if a process uses it.

    Raises:
        StoreError: there is no store of this key, or the folder cannot be changed.
    """
    folder = folder_of(root, key)
    if folder not in _folders(root):
        raise StoreError(f"no store {key!r}", where=str(root))
    with os_errors_named(folder), _directory_locked(root):
        return remove_unless_in_use(folder)


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if is_store(path)] if root.is_dir() else []


def _entries(root: Path) -> list[Entry]:
    found = [_entry(path) for path in _folders(root)]
    return sorted(found, key=lambda entry: -entry.last_used)


def _entry(folder: Path) -> Entry:
    try:
        meta = read_meta(folder)
    except StoreError:
        meta = None
    # Its time is set when a store is opened and closed. Other files change only with rows.
    used = (folder / "lock").stat().st_mtime
    sealed = num_written(folder)
    return Entry(folder.name, folder, size_of(folder), used, is_in_use(folder), meta, sealed)


def _make_room(
    root: Path, folder: Path, wanted: Meta, disk_bytes: float, *, evicts: bool
) -> list[str]:
    """Remove stores until `wanted` fits, or none if it cannot; return a line for each removed."""
    taken = size_of(folder) if folder.exists() else 0
    # Samples may be longer than expected, so a store may have outgrown its expected size.
    laid_out = wanted.layout.size_bytes
    needed = max(laid_out, taken)
    missing = needed - taken
    others = [entry for entry in _entries(root) if entry.folder != folder]
    idle = [entry for entry in others if evicts and not entry.in_use]
    # A store in use counts with the size that it will have when all rows are written.
    live = sum(e.promised_bytes if e.in_use else e.size_bytes for e in others if e not in idle)
    growth = sum(e.promised_bytes - e.size_bytes for e in others if e.in_use)
    freed = sum(entry.size_bytes for entry in idle)
    # The bytes that this store takes already are not counted: refusing it would not free them.
    if laid_out + live > disk_bytes:
        raise StoreError(
            f"needs {_gib(laid_out)}, the budget has {_gib(disk_bytes - live)} left",
            hint="disk_gb is the budget of all stores, `finetune cache ls` lists them",
        )
    missing += growth
    if missing > (left := shutil.disk_usage(root).free) + freed:
        others_take = f", {_gib(growth)} of it for stores in use" if growth else ""
        raise StoreError(
            f"needs {_gib(needed)}, the disk has {_gib(left)} left{others_take}",
            hint="FINETUNE_CACHE may name a folder on another disk",
        )
    notes = []
    while idle and (needed + live + freed > disk_bytes or missing > shutil.disk_usage(root).free):
        oldest = idle.pop()  # entries stand in the order of their last use, the newest first
        freed -= oldest.size_bytes
        if remove_unless_in_use(oldest.folder):
            notes.append(f"store {oldest.key}: removed to make room, {_gib(oldest.size_bytes)}")
    return notes


def _gib(num_bytes: float) -> str:
    return f"{max(0.0, num_bytes) / (1 << 30):.3g} GiB"


@contextmanager
def _directory_locked(root: Path) -> Iterator[None]:
    if not root.is_dir():  # it may be a link: the user's own choice
        disk.make_folder(root, 0o700)
    with opened_to_change(root / ".lock", make=True) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Left by killed processes: under this lock no other process creates or removes a store.
        for path in root.iterdir():
            if is_leftover(path):
                with suppress(OSError):
                    disk.remove(path)
        yield
