"""Open the study of a sweep in a file or a database, and lock it among processes.

Optuna hands out trials one at a time, but counting them, choosing values and taking one are three
steps: only a lock around all three keeps two processes from taking one trial too many, or the same
combination twice. For a file it is a lock file beside it, for PostgreSQL an advisory lock, which
the server frees when the process dies.
"""

import fcntl
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from finetune import disk
from finetune.errors import FinetuneError
from finetune.redaction import remember

_JOURNAL = "journal:"
_BUSY_S = 60
"""Seconds that a process waits while another one writes to the same SQLite file."""
_CLOSED_AT_ONCE = {"poolclass": NullPool}
"""A connection lasts as long as its use: hours may lie between two, and servers end idle ones."""


class Storage:
    """Where a study is kept, and its lock.

    Args:
        url: `sqlite:///FILE`, `journal:FILE` or `postgresql+psycopg://USER@HOST/DATABASE`.

    Raises:
        FinetuneError: it is none of these, or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        """The URL; it may hold a password, which is never shown."""
        # Optuna calls its journal experimental at each start, and logs every trial.
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._lock, self._open = _means_of(url)

    @contextmanager
    def locked(self, study: str) -> Iterator[None]:
        """Run a block while no other process runs one for the same study."""
        with self._lock(study):
            yield

    def open(self, study: str, direction: Literal["maximize", "minimize"]) -> optuna.Study:
        """Return the study of a name, made if it is missing."""
        with self.locked(study), told_of_storage():
            return optuna.create_study(
                study_name=study,
                storage=self._open(),
                direction=direction,
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )


@contextmanager
def told_of_storage() -> Iterator[None]:
    """Turn what a database refuses in the block into an error that names the cause in a line.

    Raises:
        FinetuneError: the database cannot be reached, or refuses.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        # Optuna wraps what a commit is refused with, and guesses at the reason.
        told = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        cause = str(getattr(told, "orig", None) or told).strip().splitlines() or ["no answer"]
        raise FinetuneError(
            f"the study's database refuses: {cause[0]}",
            where="--storage",
            hint="trials that have ended are kept; the same command goes on",
        ) from error


def _means_of(
    url: str,
) -> tuple[Callable[[str], AbstractContextManager[None]], Callable[[], BaseStorage]]:
    """Return how a storage is locked for a study, and how it is opened."""
    if url.startswith(_JOURNAL):
        file = Path(url.removeprefix(_JOURNAL))
        if not file.name:
            raise _refused(url)
        return _file_lock(file), lambda: _journal(file)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # `from None`: what a port is not may be a part of the password.
        raise _refused(url) from None
    # Before anything may fail: each message and file of the process masks it from here on.
    if parsed.password is not None:
        remember(str(parsed.password), "***")
    kind = parsed.get_backend_name()
    if kind == "sqlite" and parsed.database:
        arguments: dict[str, Any] = {"connect_args": {"timeout": _BUSY_S}}
        return _file_lock(Path(parsed.database)), lambda: RDBStorage(url, arguments)
    if kind == "postgresql":
        engine = _engine(url)
        return _server_lock(engine), lambda: RDBStorage(url, _CLOSED_AT_ONCE)
    raise _refused(url)


def _journal(file: Path) -> JournalStorage:
    """Return the storage that a journal file is.

    Raises:
        FinetuneError: the file holds something else.
    """
    try:
        return JournalStorage(JournalFileBackend(str(file)))
    except (ValueError, KeyError, TypeError) as error:
        raise FinetuneError(
            "is no journal of a study, or is damaged", where=str(file), hint="name another file"
        ) from error


def _refused(url: str) -> FinetuneError:
    """Return the error for a URL of an unknown kind; what stands behind its kind is not shown."""
    return FinetuneError(
        f"needs a storage that is known, got {url.partition(':')[0]!r}",
        where="--storage",
        hint="sqlite:///FILE, journal:FILE, or postgresql+psycopg://USER@HOST/DATABASE",
    )


def _engine(url: str) -> Engine:
    """Return the engine of a server.

    Raises:
        FinetuneError: its driver is not installed.
    """
    try:
        # Without a transaction: one that lasts as long as the lock would be idle meanwhile, and
        # servers end such ones.
        return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise FinetuneError(
            f"needs the package {error.name!r}, which is not installed",
            where="--storage",
            hint="pip install 'psycopg[binary]', and a URL postgresql+psycopg://...",
        ) from error


def _file_lock(file: Path) -> Callable[[str], AbstractContextManager[None]]:
    """Return what locks a study that is kept in a file, by a lock file beside it."""

    @contextmanager
    def lock(study: str) -> Iterator[None]:
        disk.make_folder(file.parent)
        descriptor = disk.descriptor_to_change(file.with_name(f".{file.name}.sweep"), make=True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # which frees it

    return lock


def _server_lock(engine: Engine) -> Callable[[str], AbstractContextManager[None]]:
    """Return what locks a study that PostgreSQL keeps, by an advisory lock."""

    @contextmanager
    def lock(study: str) -> Iterator[None]:
        # The server locks numbers of 64 bits, not names.
        digest = blake2b(f"finetune sweep {study}".encode(), digest_size=8).digest()
        key = {"key": int.from_bytes(digest, signed=True)}
        with told_of_storage(), engine.connect() as connection:
            connection.execute(text("select pg_advisory_lock(:key)"), key)
            try:
                yield
            finally:
                connection.execute(text("select pg_advisory_unlock(:key)"), key)

    return lock
