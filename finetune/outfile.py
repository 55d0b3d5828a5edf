"""Write files that the user names; an existing file keeps its kind, mode and owner."""

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO

from finetune.disk import reason_of
from finetune.errors import FinetuneError
from finetune.visible import tell

_MOST_LINKS = 40
"""Most symbolic links followed in a row; Linux has the same limit."""
_JSON_LINES = ("", ".jsonl", ".ndjson", ".json", ".txt", ".log")
"""Endings of files that are written as JSON lines."""
OutputForm = Literal["csv", "json", "parquet"]
"""How the rows of a file are written; `json` are JSON lines."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def output_file(path: Path) -> Iterator[TextIO]:
    """Open a file to write UTF-8 text to. Symbolic links are followed, and stay links.

    A regular file, new or not, is written beside its place and moved there when the block ends:
    it holds either all new text or the old. A pipe, a device or an open file (`/dev/stdout`) is
    written directly.

    Raises:
        FinetuneError: it cannot be written.
    """
    with _told(path):
        target = _regular_target(path)
        opened = _written_through(path) if target is None else _written_aside(target)
        with opened as file:
            yield file


def write_new(path: Path, text: str) -> None:
    """Write a text to a file that does not exist yet, or to a pipe or device.

    Raises:
        FinetuneError: the file is there already, or cannot be written.
    """
    with _told(path):
        target = _regular_target(path)
        if target is None:
            with _written_through(path) as file:
                file.write(text)
            return
        try:
            # `_NEW` has O_EXCL: to look first and then open would let two commands write the same
            # file.
            descriptor = os.open(target, _NEW, 0o666)
        except FileExistsError as error:
            hint = "remove it, or write to another file"
            raise FinetuneError("is there already", where=str(path), hint=hint) from error
        try:
            with _as_text(descriptor) as file:
                file.write(text)
        except OSError:
            target.unlink(missing_ok=True)
            raise


def check_place(path: Path) -> None:
    """Raise if a path names a folder, or a file in a folder that is not there.

    For commands that work long before they write: what is wrong with the path is told first.

    Raises:
        FinetuneError: it does.
    """
    with _told(path):
        target = _regular_target(path)
    if target is not None and not target.parent.is_dir():
        raise FinetuneError(
            f"cannot be written: there is no folder {str(target.parent)!r}",
            where=str(path),
            hint="make the folder first",
        )


def refuse_foreign(path: Path, beginning: bytes, what: str) -> None:
    """Raise if a file to be written is there already and is not of the kind to be written.

    Args:
        path: The file. One that is missing, empty, or a pipe or device is no fault.
        beginning: The bytes that each file of that kind begins with.
        what: The kind, in words.

    Raises:
        FinetuneError: the file holds something else, or cannot be read.
    """
    with _told(path):
        if not path.is_file():
            return
        with path.open("rb") as file:
            found = file.read(len(beginning))
    if found not in (b"", beginning):
        raise FinetuneError(
            f"is there already, and is no {what}",
            where=str(path),
            hint="name another file with --out",
        )


def refuse_replacing(path: Path, read: Iterable[Path]) -> None:
    """Raise if a file to be written is one of those that are read, by any of its names.

    Pipes, devices and open files are written through, so nothing of them is replaced.

    Args:
        path: The file to be written.
        read: The files that are read. Those that do not exist are no matter.

    Raises:
        FinetuneError: it is one of them.
    """
    with _told(path):
        target = _regular_target(path)
        if target is None or not target.exists():
            return
        own = target.stat()
    for file in read:
        with suppress(OSError):
            # Links and hard links are other names of the same file
            if os.path.samestat(own, file.stat()):
                raise FinetuneError(
                    f"would replace {str(file)!r}, a file that this command reads",
                    where=str(path),
                    hint="name another file to write to",
                )


def output_form(path: Path) -> OutputForm:
    """Return by the ending of a file how its rows are written.

    Raises:
        FinetuneError: the ending is that of another format, or of none that is known.
    """
    ending = path.suffix.lower()
    with _told(path):
        is_file = _regular_target(path) is not None
    if is_file and ending not in (".csv", ".parquet", *_JSON_LINES):
        raise FinetuneError(
            f"no output has the ending {ending!r}: .csv is written as CSV, .parquet as Parquet, "
            ".jsonl as JSON lines",
            where=str(path),
            hint=f"write {path.stem}.csv or {path.stem}.jsonl",
        )
    if ending == ".parquet":
        return "parquet"
    return "csv" if ending == ".csv" else "json"


def is_regular(path: Path) -> bool:
    """Tell whether a path leads to a regular file, existing or not: to no pipe and no device.

    Raises:
        FinetuneError: it is a folder.
    """
    with _told(path):
        return _regular_target(path) is not None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `FinetuneError` that names the path."""
    try:
        yield
    except OSError as error:
        reason = reason_of(error)
        raise FinetuneError(f"cannot be written: {reason}", where=str(path)) from error


def _regular_target(path: Path) -> Path | None:
    """Return the regular file that a path leads to, existing or not; None for anything else."""
    if _is_an_open_file(path):
        return None
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            return None
    # Links are resolved here: the new file is moved over their target, not over the link.
    return Path(os.path.realpath(path))


def _is_an_open_file(path: Path) -> bool:
    """Tell whether a path is `/dev/stdout` or the like, directly or by links.

    Such a path leads to whatever the shell opened there. Replacing that file would lose what
    `>> log` held before, and the shell would continue to write to the old file.
    """
    for _ in range(_MOST_LINKS):
        folder = Path(os.path.realpath(path.parent))
        if str(folder).startswith(("/proc/", "/dev/fd")):
            return True
        if not path.is_symlink():
            return False
        path = folder / path.readlink()
    return False


@contextmanager
def _written_through(path: Path) -> Iterator[TextIO]:
    """Open a pipe, device or open file for writing; wait for a reader of a pipe, and say so."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
    # Without O_NONBLOCK, to open a pipe that has no reader would wait without a word.
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
    except OSError as error:
        # The one fault of a pipe that mends itself
        if error.errno != errno.ENXIO or not path.is_fifo():
            raise
        tell(f"{path}: waits for somebody to read this pipe", sys.stderr)
        descriptor = os.open(path, flags)
    with _as_text(descriptor) as file:
        yield file


@contextmanager
def _written_aside(target: Path) -> Iterator[TextIO]:
    """Yield a new file beside the target; at the end move it there, or copy its contents."""
    old = target.stat() if target.exists() else None
    # A rename needs rights on the folder only: it would replace a file that is read-only.
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    aside = target.with_name(f".finetune-{secrets.token_hex(8)}.tmp")
    # Until it has the mode of the old file, nobody else reads it
    mode = 0o666 if old is None else 0o600
    try:
        descriptor = os.open(aside, _NEW, mode)
    except PermissionError:
        if old is None:
            raise
        # The file may be written but its folder may not: only its contents are replaced
        aside = Path(tempfile.gettempdir(), aside.name)
        descriptor = os.open(aside, _NEW, mode)
    try:
        with _as_text(descriptor) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            is_alike = old is None or _is_made_alike(descriptor, target, old)
        _put(aside, target, is_alike=is_alike)
    finally:
        aside.unlink(missing_ok=True)


def _put(aside: Path, target: Path, *, is_alike: bool) -> None:
    """Move a file to the target; or copy only its contents, if the target cannot be replaced."""
    if is_alike:
        try:
            aside.replace(target)
            return
        except OSError as error:
            # a file mounted on its own into a container, or one in a folder that may not be changed
            if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM):
                raise
    with aside.open("rb") as source, target.open("r+b") as file:
        file.truncate()
        shutil.copyfileobj(source, file)


def _is_made_alike(descriptor: int, target: Path, old: os.stat_result) -> bool:
    """Give a file the owner, attributes and mode of the old one; return False if that fails.

    Also False if the old file has several names (hard links): a move would replace only one.
    """
    try:
        now = os.fstat(descriptor)
        if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        if sys.platform == "linux":  # among the attributes are access control lists
            for name in os.listxattr(target):
                os.setxattr(descriptor, name, os.getxattr(target, name))
        # Last, since `fchown` clears set-user-ID bits of the mode.
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
    except OSError:
        return False
    return old.st_nlink == 1


def _as_text(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="")
