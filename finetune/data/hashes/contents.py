"""Hash the contents of files and values, with states that tell whether a file may have changed.

Letters: N files or items of a column.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.bits import fingerprint
from finetune.counting import Counting
from finetune.errors import DataError

HASH_BYTES = 16
_OPENING_BYTES = 16 << 10
"""Cost of opening a file, as a number of bytes that take as long to read."""
_RACY_NS = 2 * 10**9
"""A change this soon after another may leave the times unchanged: file clocks advance in ticks."""
_TICK_NS = 10**7
"""Times in whole hundredths of a second come from file systems without fine times."""
_TRIES = 3
_EXACT_BY_REPR = {"datetime", "decimal", "fractions", "uuid", "pathlib", "pathlib._local"}
"""Modules of the standard library whose values are fully described by their `repr`."""

State = tuple[int, int, int, int]
"""Values that differ if a file may have changed: size, modification time, change time of the inode
(which no program can set), number of the inode."""
UNKNOWN: State = (0, 0, 0, 0)
"""Stands for a state that proves nothing."""


class Contents(NamedTuple):
    """Content hashes of a column's items."""

    hashes: Tensor
    """(N, 16) uint8"""
    states: Tensor
    """State of each file when it was hashed, (N, 4) int64; `UNKNOWN` if it proves nothing."""


def reader_of(what: str, *, skips: bool) -> Callable[[Sequence[Path]], Contents]:
    """Return a function that reads files: images, say, of which some may be skipped."""
    return contents_if_readable if skips else partial(read_contents, what=what)


def contents_if_readable(paths: Sequence[Path]) -> Contents:
    """Return hash and state of each file; one that cannot be read has the hash of no contents."""
    found = []
    for path in _counted(paths, "image"):
        try:
            found.append(_read(path))
        except DataError:
            found.append((blake2b(b"unread", digest_size=HASH_BYTES).digest(), UNKNOWN))
    return _joined(found)


def read_contents(paths: Sequence[Path], what: str = "image") -> Contents:
    """Read all files; return hash and state of each.

    Args:
        paths: The files.
        what: What a file is, for messages.

    Raises:
        DataError: a file is missing, cannot be read, or is being written.
    """
    return _joined([_read(path, what) for path in _counted(paths, what)])


def _counted(paths: Sequence[Path], what: str) -> Iterator[Path]:
    """Yield files to be hashed, and tell how far that is."""
    counting = Counting(f"reading {what}s to know their contents", "files")
    for done, path in enumerate(paths):
        counting.at(done, done / len(paths))
        yield path


def _joined(found: Sequence[tuple[bytes, State]]) -> Contents:
    """Return the hashes and states of files as tensors."""
    return Contents(
        as_hashes([digest for digest, _ in found]),
        torch.tensor([state for _, state in found], dtype=torch.int64).reshape(-1, 4),
    )


def states_of(paths: Sequence[Path]) -> list[State]:
    """Return the present state of files, whatever it proves.

    Raises:
        OSError: a file is missing.
    """
    return [_as_state(path.stat()) for path in paths]


def file_states(paths: Sequence[Path], what: str = "image", *, skips: bool = False) -> Tensor:
    """Return the state of each file, (N, 4) int64; no file is opened.

    Args:
        paths: The files.
        what: What they are, for messages.
        skips: Whether a file that has no state gets `UNKNOWN`.

    Raises:
        DataError: a file is missing, or its folder cannot be read.
    """
    try:
        found = [_as_state(os.stat(path)) for path in paths]  # noqa: PTH116 (twice as fast)
    except OSError:
        found = [_state_or_unknown(path) if skips else _state_at(path, what) for path in paths]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 4)


def cost_of(states: Tensor) -> int:
    """Return what it costs to read all files of these states, as a number of bytes."""
    return int(states[:, 0].sum()) + len(states) * _OPENING_BYTES


def as_hashes(digests: Sequence[bytes]) -> Tensor:
    """Return hashes of 16 bytes as a tensor (N, 16) uint8."""
    flat = np.frombuffer(bytearray(b"".join(digests)), np.uint8)
    return torch.from_numpy(flat.reshape(-1, HASH_BYTES))


def is_unchanged(file: BinaryIO, state: State, digest: bytes) -> bool:
    """Tell whether an open file still has the contents that were hashed.

    If its state differs, the file is read, which moves the position in it.

    Raises:
        OSError: it cannot be read.
    """
    # The state first, which costs one call of the system instead of reading the file.
    return (state != UNKNOWN and _state(file) == state) or _hashed(file) == digest


@contextmanager
def opened_regular(path: Path, what: str = "image") -> Iterator[BinaryIO]:
    """Open a regular file that the data names; refuse pipes and devices, which may never end.

    Args:
        path: The file.
        what: What it is, for messages.

    Raises:
        DataError: it is missing, not a regular file, or cannot be read.
    """
    with naming(str(path), what):
        try:
            # Without O_NONBLOCK, opening a pipe would wait for a writer before its kind can be
            # checked.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError as error:
            raise DataError(f"cannot read the {what} {str(path)!r}: {error}") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError(f"cannot read the {what} {str(path)!r}: it is no regular file")
            yield file


@contextmanager
def naming(name: str, what: str = "image") -> Iterator[None]:
    """Turn an `OSError` of the block into a `DataError` that names the image, or `what` it is.

    Raises:
        DataError: the block raised an `OSError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no such {what} file {name!r}") from error
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise DataError(f"cannot read the {what} {name!r}: {reason}") from error


def content_of(value: Any) -> bytes | None:
    """Return bytes that only equal values share; None for an object that cannot be compared."""
    match value:
        case str():
            # A lone surrogate may be in JSON, and must not end the run here.
            return value.encode("utf-8", "surrogatepass")
        # Before the numbers of Python: numpy's float64 is a float to them.
        case np.generic() | np.ndarray() | Tensor():
            return _of_numbers(value)
        case Mapping():
            return _of_many("mapping", [part for item in value.items() for part in item])
        case list() | tuple():
            return _of_many("list", value)
        case None | bool() | int() | float() | complex() | bytes():
            return f"{type(value).__name__}\0{value!r}".encode()
    # The `repr` of any other object may hold its address, or leave out what it contains.
    return repr(value).encode() if type(value).__module__ in _EXACT_BY_REPR else None


def _of_numbers(value: Any) -> bytes | None:
    """Return the bytes of a tensor, an array or a number of numpy, with its type and shape."""
    if isinstance(value, Tensor):
        return fingerprint(value).encode()
    if value.dtype.hasobject:
        return _of_many(f"array {value.shape}", value.reshape(-1).tolist())
    return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())


def _of_many(kind: str, values: Sequence[Any]) -> bytes | None:
    """Return the content of a list or mapping as bytes; None if a value in it has none.

    Each value is hashed, so that none runs into the next.
    """
    try:
        parts = [content_of(value) for value in values]
    except RecursionError:  # a list that holds itself
        return None
    if None in parts:
        return None
    kinds = ",".join(type(value).__name__ for value in values)
    hashed = (blake2b(part, digest_size=HASH_BYTES).digest() for part in parts if part is not None)
    return f"{kind}\0{kinds}\0".encode() + b"".join(hashed)


def hash_file(file: BinaryIO, name: str, what: str = "image") -> tuple[bytes, State]:
    """Read an open file and return the hash of its contents, and its state.

    The state is `UNKNOWN` if finding the same state later would not prove that the contents are
    the same. The position in the file is moved.

    Args:
        file: The file.
        name: Its name, for messages.
        what: What the file is, for messages.

    Raises:
        DataError: the file changed during every attempt to read it.
        OSError: it cannot be read.
    """
    # The same state before and after shows that nobody wrote to the file while it was read.
    for _ in range(_TRIES):
        before, digest = _state(file), _hashed(file)
        if _state(file) == before:
            return digest, before if _is_telling(before) else UNKNOWN
    raise DataError(f"the {what} {name!r} is being written", hint="try again when it is done")


def _read(path: Path, what: str = "image") -> tuple[bytes, State]:
    """Return hash and state of a file."""
    with opened_regular(path, what) as file:
        return hash_file(file, str(path), what)


def _hashed(file: BinaryIO) -> bytes:
    """Return the hash of a whole file."""
    file.seek(0)
    return file_digest(file, lambda: blake2b(digest_size=HASH_BYTES)).digest()  # type: ignore[arg-type]


def _is_telling(state: State) -> bool:
    """Tell whether an unchanged state proves unchanged contents.

    Not if the file has just changed (writes within one tick of the clock have the same time), nor
    if the file system has no fine change time that programs cannot set, such as FAT and images of
    disks that were made reproducible.
    """
    _, modified, changed, _ = state
    return max(modified, changed) < time.time_ns() - _RACY_NS and changed % _TICK_NS != 0


def _state_at(path: Path, what: str = "image") -> State:
    """Return the state of the file at a path."""
    with naming(str(path), what):
        return _as_state(path.stat())


def _state_or_unknown(path: Path) -> State:
    """Return the state of the file at a path; `UNKNOWN` if it has none."""
    try:
        return _state_at(path)
    except DataError:
        return UNKNOWN


def _state(file: BinaryIO) -> State:
    """Return the state of an open file."""
    return _as_state(os.fstat(file.fileno()))


def _as_state(found: os.stat_result) -> State:
    """Return the state that the system's answer holds."""
    # inode numbers may use the highest bit, which int64 has for the sign
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))
