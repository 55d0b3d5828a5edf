"""One process at a time in a run folder: a lock that the system frees when its holder dies."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from finetune.errors import CheckpointError
from finetune.train.files import read_json

LOCK = ".run.lock"
_LONGEST_WAIT_S = 15.0
"""For how long processes of a dead holder, such as those of its loader, may still hold on."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run folder."""

    pid: int
    host: str
    since: str
    """Local date and time."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_dead(self) -> bool:
        """Tell whether it was a process of this machine that has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a run; one that a dead process held is taken over.

    A file system that knows no locks is used without one.

    Raises:
        CheckpointError: another process holds it.
        OSError: the lock cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / LOCK, flags, 0o644)
    try:
        _acquire(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _about_us().encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> Holder | None:
    """Return who holds the folder of a run now; None if nobody does. Nothing is changed."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _is_free(descriptor, fcntl.LOCK_SH) else _read_holder(folder)
    finally:
        os.close(descriptor)


def refuse_if_held(folder: Path) -> None:
    """Raise where another process holds the folder of a run.

    Raises:
        CheckpointError: it does. The message says which one.
    """
    holder = holder_of(folder)
    if holder is not None and not holder.is_dead():
        raise _held(folder, holder)


def _acquire(descriptor: int, folder: Path) -> None:
    until = time.monotonic() + _LONGEST_WAIT_S
    while not _is_free(descriptor, fcntl.LOCK_EX):
        holder = _read_holder(folder)
        if not holder.is_dead() or time.monotonic() > until:
            raise _held(folder, holder)
        time.sleep(0.05)


def _is_free(descriptor: int, kind: int) -> bool:
    """Take the lock if nobody has it; say whether that went well."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here at all
    return True


def _about_us() -> str:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since))) + "\n"


def _read_holder(folder: Path) -> Holder:
    """Return what the lock says of its holder, who may be about to write it."""
    try:
        said = read_json(folder / LOCK)
        return Holder(int(said["pid"]), str(said["host"]), str(said["since"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Holder(-1, "an unknown machine", "just now")


def _held(folder: Path, holder: Holder) -> CheckpointError:
    return CheckpointError(
        f"in use by {holder}",
        hint="wait for it, end it, or choose another --run",
        where=str(folder),
    )
