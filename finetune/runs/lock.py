"""Lock a run folder for one process; the operating system frees the lock if the process dies."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from finetune.disk import descriptor_to_change, open_to_read
from finetune.errors import CheckpointError
from finetune.reading import read_own_json

LOCK = ".run.lock"
# `os.kill` raises an OverflowError beyond it.
_LARGEST_PID = 2**31
_LONGEST_WAIT_S = 15.0
"""How long children of a dead process, such as data workers, may still hold its lock."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a run folder, as the lock file names it."""

    pid: int
    host: str
    since: str
    """Local date and time at which it took the lock."""
    run: str = ""
    """The run folder, if the locked folder holds only its checkpoints; else empty."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_dead(self) -> bool:
        """Tell whether it was a process of this machine and has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            # Signal 0 is not sent; the system only says whether there is such a process.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@contextmanager
def locked(folder: Path, run: Path | None = None) -> Iterator[None]:
    """Hold the lock of a folder during the block; the lock of a dead process is taken over.

    On a file system that has no locks, the block runs without one.

    Args:
        folder: The folder to lock.
        run: The run folder, if `folder` is another one that holds its checkpoints.

    Raises:
        CheckpointError: another process holds it.
        OSError: the lock cannot be made.
    """
    descriptor = descriptor_to_change(folder / LOCK, make=True)
    try:
        _acquire(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _about_us(run).encode(), 0)
        yield
    # The file stays: removed, it would let two processes lock two files of the same name. It also
    # tells later that the folder is a run's.
    finally:
        # A data worker that is still ending has the file open as well: closing would not free it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def holder_of(folder: Path) -> Holder | None:
    """Return the process that holds a folder now, or None. Nothing is changed."""
    try:
        lock = open_to_read(folder / LOCK)
    except OSError:
        return None
    with lock:
        # shared, so that two commands that look at the same time do not see each other
        return None if _is_free(lock.fileno(), fcntl.LOCK_SH) else _present_holder(folder)


def refuse_if_held(folder: Path) -> None:
    """Raise if a living process holds a run folder.

    Raises:
        CheckpointError: one does. The message names it.
    """
    holder = holder_of(folder)
    if holder is not None and not holder.is_dead():
        raise _held(folder, holder)


def _acquire(descriptor: int, folder: Path) -> None:
    """Take the lock; wait a while if its holder is dead but children still have the file open."""
    until = time.monotonic() + _LONGEST_WAIT_S
    while not _is_free(descriptor, fcntl.LOCK_EX):
        holder = _present_holder(folder)
        if not holder.is_dead() or time.monotonic() > until:
            raise _held(folder, holder)
        time.sleep(0.05)


def _is_free(descriptor: int, kind: int) -> bool:
    """Try to take a lock without waiting; return whether it was free."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # this file system has no locks
    return True


def read_holder(folder: Path) -> Holder | None:
    """Return the process that held a folder last, or None if the lock file names none."""
    try:
        # A lock file may be damaged, or not be written yet; neither must stop a command.
        said = read_own_json(folder / LOCK)
        pid, run = said["pid"], str(said.get("run", ""))
        is_pid = type(pid) is int and 0 < pid < _LARGEST_PID
        return Holder(pid, str(said["host"]), str(said["since"]), run) if is_pid else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _about_us(run: Path | None) -> str:
    """Return the text of the lock file for this process."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    where = "" if run is None else str(run.resolve())
    return json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since, where))) + "\n"


def _present_holder(folder: Path) -> Holder:
    """Return the holder that the lock file names; it may hold the lock but not have written yet."""
    return read_holder(folder) or Holder(-1, "an unknown machine", "just now")


def _held(folder: Path, holder: Holder) -> CheckpointError:
    """Return the error for a folder that another process holds."""
    return CheckpointError(
        f"in use by {holder}",
        hint="wait for it, end it, or choose another --run",
        where=str(folder),
    )
