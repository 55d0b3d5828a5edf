"""Files and folders that are whole or absent whenever the process stops; JSON within limits."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import FinetuneError
from finetune.reading import MAX_JSON_BYTES, parse_json, read_at_most

TEMPORARY, REPLACED, REMOVED = ".tmp-", ".old-", ".gone-"
"""Beginnings of the names of folders that are being written, replaced and removed."""


def reason_of(error: OSError) -> str:
    """Return why the system refused, in its own words."""
    return error.strerror or str(error)


def sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that `path` holds the old text or the new one.

    Raises:
        OSError: the system refuses; `path` is as it was.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def placed(final: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block is done, put it durably in its place.

    A folder of that name is moved aside just before and removed after, so that at any moment one
    of the two is there: `final`, or its name with `REPLACED` before it.

    Raises:
        OSError: the system refuses; what `final` held is still there.
    """
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    replaced = final.with_name(f"{REPLACED}{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        _swap(temporary, final, replaced)
        sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder in one go for all who look at it: first its name, then its contents."""
    aside = path.with_name(f"{REMOVED}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def digest_of(path: Path) -> str:
    """Return the blake2b hash of a file's bytes. Links are not followed."""
    digest = blake2b(digest_size=16)
    with _opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file of moderate size and depth. Links are not followed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or exceeds a limit.
    """
    with _opened(path) as file:
        raw = read_at_most(file, MAX_JSON_BYTES)
    try:
        return parse_json(raw, str(path))
    except FinetuneError as error:
        raise ValueError(error.message) from error


def _opened(path: Path) -> BinaryIO:
    """Open a regular file. A pipe of that name would keep us waiting, a link lead elsewhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file")
    return os.fdopen(descriptor, "rb")


def _swap(temporary: Path, final: Path, replaced: Path) -> None:
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
