"""Content hashes of files and values; a file is read again only if it may have changed.

Letters: N files or items of a column.
"""

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b, file_digest
from pathlib import Path
from random import SystemRandom
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.bits import fingerprint
from finetune.errors import DataError
from finetune.store.directory import cache_root, key_of
from finetune.store.layout import RowSpec, StoreError
from finetune.store.store import Store

HASH_BYTES = 16
_LEAST_BYTES = 32 << 20
"""Files that take less than this to read are read at every start: it takes some 50 ms."""
_OPENING_BYTES = 16 << 10
"""To open a file takes as long as to read this much."""
_LEAST_CHECKED, _SHARE_CHECKED = 8, 0.01
"""Share of the known files that are drawn at random and read again at every opening."""
_RACY_NS = 2 * 10**9
"""A change so soon after the last one may leave the times as they are: clocks of files tick."""
_TICK_NS = 10**7
"""Times of change in whole hundredths of a second come from file systems that keep no fine ones."""
_TRIES = 3
_EXACT_BY_REPR = {"datetime", "decimal", "fractions", "uuid", "pathlib", "pathlib._local"}
"""Modules of the standard library whose values tell all of themselves by `repr`."""
_SPECS = {"state": RowSpec((4,), "int64"), "hash": RowSpec((HASH_BYTES,), "uint8")}

State = tuple[int, int, int, int]
"""What tells that a file may have changed: size, time of change, time of change of the entry
(which no program can set), number of the entry."""
UNKNOWN: State = (0, 0, 0, 0)
"""In place of a state that tells nothing."""


class Contents(NamedTuple):
    """What the items of a column hold."""

    hashes: Tensor
    """(N, 16) uint8"""
    states: Tensor
    """State of each file as it was hashed, (N, 4) int64; `UNKNOWN` where that tells nothing."""


class KnownFiles:
    """Hashes of files, kept from run to run beside the state that each file had.

    Args:
        disk_gb: GiB that all stores together may take. None is removed to make room for hashes.
        root: The folder of all stores; the user's if left out.
    """

    def __init__(self, disk_gb: float, root: Path | None = None) -> None:
        self.notes: list[str] = []
        """What a user should know, a line each."""
        self._disk_gb, self._root = disk_gb, root

    def contents(self, paths: Sequence[Path]) -> Contents:
        """Return what files hold. Those whose state is as it was are not read, but for a few.

        Raises:
            DataError: a file is missing, cannot be read or is being written.
        """
        states = torch.tensor([_state_at(path) for path in paths]).reshape(-1, 4)
        if int(states[:, 0].sum()) + len(paths) * _OPENING_BYTES < _LEAST_BYTES:
            return read_contents(paths)
        try:
            return self._stored(paths, states)
        except StoreError as error:
            self.notes.append(f"hashes of files are not kept: {error.in_one_line}")
            return read_contents(paths)

    def _stored(self, paths: Sequence[Path], states: Tensor) -> Contents:
        names = b"\0".join(os.path.abspath(os.fsencode(path)) for path in paths)  # noqa: PTH100
        data = blake2b(names, digest_size=HASH_BYTES).hexdigest()
        key = key_of({"files": data})
        store = Store.open(
            self._root or cache_root(),
            key,
            _SPECS,
            len(paths),
            memory_gb=0,
            disk_gb=self._disk_gb,
            facts={"hashes": "of files", "data": data},
            evicts=False,
        )
        with closing(store):
            known = _known(store, states)
            if not _are_right(store, known, paths):
                self.notes.append(f"the hashes of files in store {key} are wrong: all are read")
                known = torch.zeros_like(known)
            contents = _completed(store, known, paths)
            _write(store, known, contents)
            self.notes += store.take_notes()
            return contents


def read_contents(paths: Sequence[Path]) -> Contents:
    """Read all of some files, and return what they hold.

    Raises:
        DataError: a file is missing, cannot be read or is being written.
    """
    found = [_read(path) for path in paths]
    return Contents(
        as_hashes([digest for digest, _ in found]),
        torch.tensor([state for _, state in found], dtype=torch.int64).reshape(-1, 4),
    )


def as_hashes(digests: Sequence[bytes]) -> Tensor:
    """Return hashes of 16 bytes as numbers (N, 16)."""
    flat = np.frombuffer(bytearray(b"".join(digests)), np.uint8)
    return torch.from_numpy(flat.reshape(-1, HASH_BYTES))


def is_unchanged(file: BinaryIO, state: State, digest: bytes) -> bool:
    """Tell whether an open file holds what was hashed.

    Where its state differs it is read, which moves the position in it.

    Raises:
        OSError: it cannot be read.
    """
    return (state != UNKNOWN and _state(file) == state) or _hashed(file) == digest


@contextmanager
def opened_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that data names. A pipe would keep us waiting, a device never end.

    Raises:
        DataError: it is missing, no regular file, or cannot be read.
    """
    with naming(str(path)):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError as error:
            raise DataError(f"cannot read the image {str(path)!r}: {error}") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError(f"cannot read the image {str(path)!r}: it is no regular file")
            yield file


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn errors of the system into ones that name the image.

    Raises:
        DataError: the block raises an OSError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no such image file {name!r}") from error
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise DataError(f"cannot read the image {name!r}: {reason}") from error


def content_of(value: Any) -> bytes | None:
    """Return bytes that only equal values share; None for an object of which nobody can tell."""
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")
        case np.generic() | np.ndarray() | Tensor():
            return _of_numbers(value)
        case Mapping():
            return _of_many("mapping", [part for item in value.items() for part in item])
        case list() | tuple():
            return _of_many("list", value)
        case None | bool() | int() | float() | complex() | bytes():
            return f"{type(value).__name__}\0{value!r}".encode()
    return repr(value).encode() if type(value).__module__ in _EXACT_BY_REPR else None


def _of_numbers(value: Any) -> bytes | None:
    if isinstance(value, Tensor):
        return fingerprint(value).encode()
    if value.dtype.hasobject:
        return _of_many(f"array {value.shape}", value.reshape(-1).tolist())
    return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())


def _of_many(kind: str, values: Sequence[Any]) -> bytes | None:
    """Return the same for values in each other; each is hashed, so that none runs into the next."""
    try:
        parts = [content_of(value) for value in values]
    except RecursionError:  # a list that holds itself
        return None
    if None in parts:
        return None
    kinds = ",".join(type(value).__name__ for value in values)
    hashed = (blake2b(part, digest_size=HASH_BYTES).digest() for part in parts if part is not None)
    return f"{kind}\0{kinds}\0".encode() + b"".join(hashed)


def _known(store: Store, states: Tensor) -> Tensor:
    """Return which files are in a store with the state they have now (N,)."""
    rows = torch.arange(len(states))
    known = store.has(rows)
    known[known.clone()] = (store.read(rows[known])["state"] == states[known]).all(1)
    return known


def _are_right(store: Store, known: Tensor, paths: Sequence[Path]) -> bool:
    """Read a random share of the files that are known, and compare."""
    rows = known.nonzero().squeeze(1).tolist()
    count = min(len(rows), max(_LEAST_CHECKED, round(_SHARE_CHECKED * len(rows))))
    checked = sorted(SystemRandom().sample(rows, count))
    if not checked:
        return True
    now = read_contents([paths[row] for row in checked]).hashes
    return torch.equal(store.read(torch.tensor(checked))["hash"], now)


def _completed(store: Store, known: Tensor, paths: Sequence[Path]) -> Contents:
    """Return what all files hold: as the store has it, the others as they are read now."""
    contents = Contents(
        torch.zeros(len(paths), HASH_BYTES, dtype=torch.uint8),
        torch.zeros(len(paths), 4, dtype=torch.int64),
    )
    rows, others = known.nonzero().squeeze(1), (~known).nonzero().squeeze(1)
    if len(rows):
        stored = store.read(rows)
        contents.hashes[rows], contents.states[rows] = stored["hash"], stored["state"]
    if len(others):
        read = read_contents([paths[row] for row in others.tolist()])
        contents.hashes[others], contents.states[others] = read
    return contents


def _write(store: Store, known: Tensor, contents: Contents) -> None:
    """Keep what was read of files whose state tells something."""
    told = (contents.states != 0).any(1)
    if bool((store.has(torch.arange(len(known))) & ~known).any()):
        store.discard()  # a row that is there stays: those of changed files have to go first
        known = torch.zeros_like(known)
    rows = (told & ~known).nonzero().squeeze(1)
    if len(rows):
        store.write(rows, {"state": contents.states[rows], "hash": contents.hashes[rows]})


def _read(path: Path) -> tuple[bytes, State]:
    """Hash a file; return with it its state, `UNKNOWN` where that tells nothing."""
    with opened_regular(path) as file:
        for _ in range(_TRIES):
            before, digest = _state(file), _hashed(file)
            if _state(file) == before:
                return digest, before if _is_telling(before) else UNKNOWN
    raise DataError(f"the image {str(path)!r} is being written", hint="try again when it is done")


def _hashed(file: BinaryIO) -> bytes:
    file.seek(0)
    return file_digest(file, lambda: blake2b(digest_size=HASH_BYTES)).digest()  # type: ignore[arg-type]


def _is_telling(state: State) -> bool:
    """Tell whether a file that has this state later on holds what it holds now.

    Not where it has just changed (what is written within one tick of the clock has one time), nor
    where the file system keeps no fine time of change that no program can set: such as FAT, and
    images of disks that were made to be alike.
    """
    _, modified, changed, _ = state
    return max(modified, changed) < time.time_ns() - _RACY_NS and changed % _TICK_NS != 0


def _state_at(path: Path) -> State:
    with naming(str(path)):
        return _as_state(path.stat())


def _state(file: BinaryIO) -> State:
    return _as_state(os.fstat(file.fileno()))


def _as_state(found: os.stat_result) -> State:
    # numbers of entries may need the sign
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))
