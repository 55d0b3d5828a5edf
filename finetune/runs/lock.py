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

from finetune.disk import descriptor_to_change, open_to_read
from finetune.errors import CheckpointError
from finetune.reading import read_own_json

LOCK = ".run.lock"
_LARGEST_PID = 2**31
_LONGEST_WAIT_S = 15.0
"""For how long processes of a dead holder, such as those of its loader, may still hold on."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run folder."""

    pid: int
    host: str
    since: str
    """Local date and time."""
    run: str = ""
    """The run folder, where only its checkpoints lie in the folder held."""

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
def locked(folder: Path, run: Path | None = None) -> Iterator[None]:
    """Hold the folder of a run; one that a dead process held is taken over.

    A file system that knows no locks is used without one.

    Args:
        folder: The folder.
        run: The run folder, where `folder` is another one that holds its checkpoints.

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
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> Holder | None:
    """Return who holds the folder of a run now; None if nobody does. Nothing is changed."""
    try:
        lock = open_to_read(folder / LOCK)
    except OSError:
        return None
    with lock:
        return None if _is_free(lock.fileno(), fcntl.LOCK_SH) else _present_holder(folder)


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
        holder = _present_holder(folder)
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


def read_holder(folder: Path) -> Holder | None:
    """Return who held the folder of a run last; None where no lock of a run says so."""
    try:
        said = read_own_json(folder / LOCK)
        pid, run = said["pid"], str(said.get("run", ""))
        is_pid = type(pid) is int and 0 < pid < _LARGEST_PID
        return Holder(pid, str(said["host"]), str(said["since"]), run) if is_pid else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _about_us(run: Path | None) -> str:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    where = "" if run is None else str(run.resolve())
    return json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since, where))) + "\n"


def _present_holder(folder: Path) -> Holder:
    """Return what the lock says of its holder, who may be about to write it."""
    return read_holder(folder) or Holder(-1, "an unknown machine", "just now")


def _held(folder: Path, holder: Holder) -> CheckpointError:
    return CheckpointError(
        f"in use by {holder}",
        hint="wait for it, end it, or choose another --run",
        where=str(folder),
    )
