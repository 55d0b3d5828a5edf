"""The store directory: the folder of all stores, with locks and removal of unused ones.

Each store is a folder named by its key. A process that uses one holds a shared lock on its file
`lock`, so a store in use is never removed. Opening, creating and removing a store happens under
the lock of the whole directory, so no process sees a store half created or half removed.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from finetune import disk
from finetune.reading import read_at_most
from finetune.store.layout import Meta, StoreError, StoreFullError, os_errors_named

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_ASIDE = re.compile(rf"\.(?:new|old)-\d+-{_KEY.pattern}")
"""Temporary names of stores that are being created or removed."""
_FILLED = re.compile(rf"\.filled-\d+-{_KEY.pattern}")
"""Temporary names of tables that are being written; the process locks them meanwhile."""
_FILES = re.compile(
    r"lock|seals|index|rows-\d+|meta\.json|verdicts|verdicts-\d+|\.verdicts\.tmp-\d+"
    r"|table\.arrow|table\.json|\.table\.json\.tmp-\d+"
    r"|hashes-[0-9a-f]{32}|\.hashes-[0-9a-f]{32}\.tmp-\d+"
)
"""Names of all files of a store. A folder with any other file is not ours."""
_LARGEST_META = 16 << 20
_READ_AT_ONCE = 1 << 20
"""Bytes that are counted in one piece."""


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
        # processes that were forked meanwhile hold the same lock
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
        StoreFullError: it does not fit, even with all others removed.
        StoreError: the folder cannot be used.
    """
    folder = folder_of(root, wanted.key)
    with os_errors_named(folder), _directory_locked(root):
        notes = _remove_unusable(folder, wanted)
        notes += _make_room(root, folder, wanted, disk_bytes, evicts=evicts)
        if folder.exists():
            _drop_leavings(folder, wanted)
        else:
            _make(folder, wanted)
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
        if fault := _fault(folder, wanted):
            raise StoreError(fault)
        return _claimed(folder, wanted, (), is_use=False)


def _claimed(folder: Path, wanted: Meta, notes: Sequence[str], *, is_use: bool = True) -> Claim:
    """Take the shared lock of a store that has all its files."""
    resized = _restore_sizes(folder, wanted)
    lock = _open_lock(folder)
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
        disk.refuse_foreign(aside, _FILES)
        disk.remove(aside)
        disk.make_folder(aside, 0o700)
        for name in ("lock", "seals"):
            disk.write_new(aside / name, b"")
        lock = _open_lock(aside)
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
        StoreFullError: it does not fit; no store is removed for it.
        StoreError: the folder cannot be placed.
    """
    folder = folder_of(aside.parent, meta.key)
    with os_errors_named(folder), _directory_locked(aside.parent):
        if folder.exists() and not (disk.holds_only(folder, _FILES) and _remove(folder)):
            raise StoreError("is in use, or is no folder of ours", where=str(folder))
        taken = sum(entry.size_bytes for entry in _entries(aside.parent))
        if (needed := size_of(aside)) + taken > disk_bytes:
            raise StoreFullError(
                f"needs {_gib(needed)}, the budget has {_gib(disk_bytes - taken)} left",
                hint="disk_gb is the budget of all stores, `finetune cache ls` lists them",
            )
        disk.write_new(aside / "meta.json", meta.to_json().encode())
        disk.sync(aside)
        disk.rename(aside, folder)
        disk.sync(aside.parent)
    return folder


def num_written(folder: Path) -> int:
    """Return the number of written rows, damaged or not; 0 if there is no such store."""
    count = 0
    try:
        with disk.open_to_read(folder / "seals") as file:
            # piece by piece: a damaged file may be larger than memory
            while piece := file.read(_READ_AT_ONCE):
                count += int(np.count_nonzero(np.frombuffer(piece, np.uint64, len(piece) // 8)))
    except OSError:
        return 0
    return count


def remove_store(root: Path, key: str) -> bool:
    """Remove a store; return False if a process uses it.

    Raises:
        StoreError: there is no store of this key, or the folder cannot be changed.
    """
    folder = folder_of(root, key)
    if folder not in _folders(root):
        raise StoreError(f"no store {key!r}", where=str(root))
    with os_errors_named(folder), _directory_locked(root):
        return _remove(folder)


def read_meta(folder: Path) -> Meta:
    """Read `meta.json` of a store.

    Raises:
        StoreError: it is missing or cannot be read.
    """
    path = folder / "meta.json"
    with os_errors_named(path), disk.open_to_read(path) as file:
        return Meta.from_json(read_at_most(file, _LARGEST_META).decode("utf-8", errors="replace"))


def folder_of(root: Path, key: str) -> Path:
    """Return the folder of a store.

    Raises:
        StoreError: the key is not a valid folder name.
    """
    if not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is no key of a store")
    return root / key


def _folders(root: Path) -> list[Path]:
    """Return the folders that hold our two files and no file that is not ours."""
    if not root.is_dir():
        return []
    return [
        path
        for path in sorted(root.iterdir())
        if _KEY.fullmatch(path.name) and disk.holds_only(path, _FILES)
        if disk.is_own_file(path / "lock") and disk.is_own_file(path / "seals")
    ]


def _entries(root: Path) -> list[Entry]:
    found = [_entry(path) for path in _folders(root)]
    return sorted(found, key=lambda entry: -entry.last_used)


def _entry(folder: Path) -> Entry:
    try:
        meta = read_meta(folder)
    except StoreError:
        meta = None
    # set when a store is opened and closed: other files change only when rows are written
    used = (folder / "lock").stat().st_mtime
    sealed = num_written(folder)
    return Entry(folder.name, folder, size_of(folder), used, _in_use(folder), meta, sealed)


def size_of(folder: Path) -> int:
    """Return the bytes that the files of a store take on disk now."""
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just put it in its place
            total += path.lstat().st_blocks * 512
    return total


def _remove_unusable(folder: Path, wanted: Meta) -> list[str]:
    """Remove a store that cannot be used; return the reason as a line."""
    if disk.kind_of(folder) is None:
        return []
    if not disk.holds_only(folder, _FILES):
        raise StoreError("is no folder of ours", where=str(folder), hint="remove it")
    fault = _fault(folder, wanted)
    if fault is None:
        return []
    if not _remove(folder):
        raise StoreError(f"{fault}, and another process has it open", where=str(folder))
    return [f"store {folder.name}: {fault}; everything is recomputed"]


def _fault(folder: Path, wanted: Meta) -> str | None:
    """Return why a whole store cannot be used, or None. Damaged rows are not a reason."""
    try:
        fault = read_meta(folder).difference(wanted)
    except StoreError as error:
        return error.message
    names = ("lock", *wanted.layout.files())
    missing = [name for name in names if not disk.is_own_file(folder / name)]
    return fault or (f"{missing[0]} is missing" if missing else None)


def _drop_leavings(folder: Path, wanted: Meta) -> None:
    """Remove leftovers of a killed process; truncate ragged files if no row is written.

    Does nothing if a process uses the store.
    """
    if _in_use(folder):
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


def _restore_sizes(folder: Path, wanted: Meta) -> list[str]:
    """Restore the size of fixed-size files. The zeros that fill them match no checksum."""
    notes = []
    for name, size in wanted.layout.files().items():
        actual = (folder / name).stat().st_size
        if size and actual != size:
            _resize(folder / name, size)
            lost = f"{name!r} has {actual:,} bytes, needs {size:,}"
            notes.append(f"store {folder.name}: {lost}; damaged rows are recomputed")
    return notes


def _resize(path: Path, size: int) -> None:
    descriptor = disk.descriptor_to_change(path)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _make_room(
    root: Path, folder: Path, wanted: Meta, disk_bytes: float, *, evicts: bool
) -> list[str]:
    """Remove stores until `wanted` fits, or none if it cannot; return a line for each removed."""
    taken = size_of(folder) if folder.exists() else 0
    # samples may be longer than expected
    laid_out = wanted.layout.size_bytes
    needed = max(laid_out, taken)
    missing = needed - taken
    others = [entry for entry in _entries(root) if entry.folder != folder]
    idle = [entry for entry in others if evicts and not entry.in_use]
    # a store in use counts with its final size
    live = sum(e.promised_bytes if e.in_use else e.size_bytes for e in others if e not in idle)
    growth = sum(e.promised_bytes - e.size_bytes for e in others if e.in_use)
    freed = sum(entry.size_bytes for entry in idle)
    # what this store takes already is not counted: refusing it would free nothing
    if laid_out + live > disk_bytes:
        raise StoreFullError(
            f"needs {_gib(laid_out)}, the budget has {_gib(disk_bytes - live)} left",
            hint="disk_gb is the budget of all stores, `finetune cache ls` lists them",
        )
    missing += growth
    if missing > (left := shutil.disk_usage(root).free) + freed:
        others_take = f", {_gib(growth)} of it for stores in use" if growth else ""
        raise StoreFullError(
            f"needs {_gib(needed)}, the disk has {_gib(left)} left{others_take}",
            hint="FINETUNE_CACHE may name a folder on another disk",
        )
    notes = []
    while idle and (needed + live + freed > disk_bytes or missing > shutil.disk_usage(root).free):
        oldest = idle.pop()
        freed -= oldest.size_bytes
        if _remove(oldest.folder):
            notes.append(f"store {oldest.key}: removed to make room, {_gib(oldest.size_bytes)}")
    return notes


def _gib(num_bytes: float) -> str:
    return f"{max(0.0, num_bytes) / (1 << 30):.3g} GiB"


def _make(folder: Path, meta: Meta) -> None:
    """Create an empty store under a temporary name, then rename it."""
    # under its own name only when whole: a kill leaves no half-made store
    aside = folder.with_name(f".new-{os.getpid()}-{folder.name}")
    disk.refuse_foreign(aside, _FILES)
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


def _remove(folder: Path) -> bool:
    """Remove a store unless it is in use. It is renamed first: no process sees it partly gone."""
    if _in_use(folder):
        return False
    aside = folder.with_name(f".old-{os.getpid()}-{folder.name}")
    disk.refuse_foreign(aside, _FILES)
    disk.remove(aside)
    disk.rename(folder, aside)
    disk.remove(aside)
    return True


def _in_use(folder: Path) -> bool:
    if not disk.is_own_file(folder / "lock"):
        return False
    # every user holds a shared lock, which the system drops when its process ends
    lock = _open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    return disk.descriptor_to_change(folder / "lock")


@contextmanager
def _directory_locked(root: Path) -> Iterator[None]:
    if not root.is_dir():  # it may be a link: the user's own choice
        disk.make_folder(root, 0o700)
    lock = disk.descriptor_to_change(root / ".lock", make=True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # left by killed processes; nobody else can be at work under this lock
        for path in root.iterdir():
            is_left = _ASIDE.fullmatch(path.name) or (
                _FILLED.fullmatch(path.name) and not _in_use(path)
            )
            if is_left and disk.holds_only(path, _FILES):
                with suppress(OSError):
                    disk.remove(path)
        yield
    finally:
        os.close(lock)
