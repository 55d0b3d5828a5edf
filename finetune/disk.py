"""The only place that opens, replaces and removes files of run folders and of the cache.

A run folder or a cache may come from somebody else, so a name in it may be a link, a pipe or a
device, or a second name of a file elsewhere (a hard link). Every function here looks at the last
part of the path itself and never at what a link there points to. The folders above it are checked
once, when a run or a store is opened (`refuse_unless_folder`). Folders that appear and vanish as a
whole are made in `whole_folders.py`.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, BinaryIO

# O_NONBLOCK: to open a pipe without it waits until somebody writes
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Only a regular file is ever opened; these words say what bears the name instead.
_KINDS = {
    stat.S_IFLNK: "is a link, which is not followed here",
    stat.S_IFIFO: "is a pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
    stat.S_IFDIR: "is a folder, not a file",
}


class NotOursError(OSError):
    """A name that finetune uses is taken by something else: a link, pipe, device or folder."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EPERM, what, str(path))


def reason_of(error: OSError) -> str:
    """Return the operating system's text for an error, such as `No space left on device`."""
    return error.strerror or str(error)


def kind_of(path: Path) -> int | None:
    """Return the type of a file (`stat.S_IFREG`, ...) or link itself; None if there is none."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(path: Path) -> bool:
    """Tell whether a regular file bears this name; a link to one does not count."""
    return kind_of(path) == stat.S_IFREG


def is_own_file(path: Path) -> bool:
    """Tell whether a regular file bears this name, and no hard link elsewhere shares it."""
    # A write through a second name would change a file that somebody keeps outside the run folder.
    return is_file(path) and path.lstat().st_nlink == 1


def is_folder(path: Path) -> bool:
    """Tell whether a folder bears this name; a link to one does not count."""
    return kind_of(path) == stat.S_IFDIR


def refuse_unless_file(path: Path) -> None:
    """Raise where a name is taken by something else than a regular file.

    Raises:
        NotOursError: a link, a pipe, a device or a folder bears the name.
    """
    kind = kind_of(path)
    if kind not in (None, stat.S_IFREG):
        raise NotOursError(path, _KINDS.get(kind or 0, "is not a file"))


def refuse_unless_folder(path: Path) -> None:
    """Raise where a name is taken by something else than a folder.

    Raises:
        NotOursError: a link, a pipe, a device or a file bears the name.
    """
    kind = kind_of(path)
    if kind == stat.S_IFLNK:
        raise NotOursError(path, _KINDS[kind])
    if kind not in (None, stat.S_IFDIR):
        raise NotOursError(path, "is not a folder")


def strange_below(folder: Path) -> Iterator[Path]:
    """Yield all paths below a folder that are neither regular file nor folder; follow no link."""
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in sorted((*folders, *files)):
            path = Path(place, name)
            if not is_folder(path) and not is_file(path):
                yield path


def open_to_read(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        NotOursError: the name is a link, a pipe, a device or a folder.
        OSError: it cannot be opened.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def begins_with(path: Path, mark: bytes) -> bool:
    """Tell whether a name is a regular file that can be read and begins with these bytes."""
    try:
        with open_to_read(path) as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


def digest_of(path: Path) -> str:
    """Return the blake2b hash of a regular file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = blake2b(digest_size=16)
    with open_to_read(path) as file:
        # Blocks of 1 MiB: a checkpoint may be larger than memory.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file for reading and appending, made if it is missing.

    Raises:
        NotOursError: the name is no regular file, or the file bears another name as well.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    return os.fdopen(_alone(_opened(path, flags), path), "ab+")


def descriptor_to_change(path: Path, *, make: bool = False) -> int:
    """Return a descriptor of a regular file for reading and writing in place.

    Args:
        path: The file.
        make: Whether a missing file is made.

    Raises:
        NotOursError: the name is no regular file, or the file bears another name as well.
        OSError: it cannot be opened.
    """
    return _alone(_opened(path, os.O_RDWR | (os.O_CREAT if make else 0)), path)


def nameless_file() -> int:
    """Return the descriptor of a new file without a name; it vanishes with its last descriptor.

    It is in memory if the system has such files, else in the folder for temporary files.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("finetune")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def temporary_file() -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new file, not buffered, that other processes can open by its name in the block."""
    with tempfile.NamedTemporaryFile(prefix="finetune-", buffering=0) as file:
        yield Path(file.name), file.file


def open_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """Make a file and open it for writing. A file or link that bore the name is removed first.

    Args:
        path: The file.
        mode: Who may read and write it, before the umask.

    Raises:
        OSError: it cannot be made, or a folder bears the name.
    """
    # O_EXCL then fails if somebody puts a link there in between, instead of writing through it.
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
    return os.fdopen(os.open(path, flags, mode), "wb")


def write_new(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a new file durably. A file or link that bore the name is removed first.

    Args:
        path: The file.
        content: All that it will hold.
        mode: Who may read and write it, before the umask.

    Raises:
        OSError: it cannot be written, or a folder bears the name.
    """
    with open_new(path, mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes, tag: str = "", mode: int = 0o666) -> None:
    """Write a file durably, so that `path` holds the old content or the new one.

    Args:
        path: The file.
        content: All that it will hold.
        tag: Tells apart the temporary files of processes that replace the same file.
        mode: Who may read and write it, before the umask.

    Raises:
        NotOursError: the name is taken by something other than a regular file.
        OSError: the system refuses; `path` is as it was.
    """
    with _replacing(path, tag) as aside:
        write_new(aside, content, mode)


@contextmanager
def _replacing(path: Path, tag: str = "") -> Iterator[Path]:
    """Yield a path beside `path` to write a new file to; then rename that file to `path`."""
    # The rename below would replace a link or pipe without a word.
    refuse_unless_file(path)
    aside = path.with_name(f".{path.name}.tmp{tag and '-'}{tag}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Block until a file or folder is on the disk (`fsync`).

    Raises:
        OSError: the path is a link, or the system cannot write it.
    """
    descriptor = os.open(path, os.O_RDONLY | _SAFE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its missing parents; do nothing if it is there.

    Raises:
        NotOursError: a link or a file bears the name.
        OSError: it cannot be made.
    """
    refuse_unless_folder(path)
    path.mkdir(mode=mode, parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link itself, or a folder with its contents; links in it are not followed.

    Raises:
        OSError: the system refuses.
    """
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder_if_empty(path: Path) -> bool:
    """Remove a folder that holds nothing; return whether it is gone. A link to one stays.

    Raises:
        OSError: the system refuses for another reason than contents.
    """
    if not is_folder(path):
        return False
    with os.scandir(path) as entries:
        if any(entries):
            return False
    path.rmdir()
    return True


def rename(path: Path, to: Path) -> None:
    """Rename a file, folder or link itself; a file that already has the new name is replaced.

    Raises:
        OSError: the system refuses.
    """
    path.rename(to)


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file to a free name, or over a regular file; the copy appears whole.

    Raises:
        NotOursError: one of the two names is a link, a pipe, a device or a folder, or the source
            has another name elsewhere: a copy would give away what may be a private file.
        OSError: the system refuses.
    """
    # The checks are made on the open descriptor: a name may be given to another file between check
    # and use.
    descriptor = _alone(_opened(source, os.O_RDONLY), source)
    with os.fdopen(descriptor, "rb") as old, _replacing(target) as aside, open_new(aside) as new:
        shutil.copyfileobj(old, new, 1 << 20)


def _opened(path: Path, flags: int) -> int:
    """Open a regular file and return its descriptor; raise `NotOursError` for anything else."""
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError:
        refuse_unless_file(path)  # says more than "too many levels of symbolic links"
        raise
    # Asked of the descriptor, since the name may lead elsewhere by now. O_NOFOLLOW refuses links
    # alone: pipes and devices get here.
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise NotOursError(path, _KINDS.get(kind, "is not a file"))
    return descriptor


def _alone(descriptor: int, path: Path) -> int:
    """Return the descriptor if its file has no second name (hard link); else close it and raise."""
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise NotOursError(path, "bears another name elsewhere (a hard link)")
    return descriptor
