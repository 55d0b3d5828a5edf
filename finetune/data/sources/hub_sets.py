"""Load a data set by `datasets`, from a folder, the hub or its cache, and refuse a cut one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config.source_keys import HuggingFaceSource
from finetune.data.sources.saved_folders import FAULTS, is_saved, load_saved, refuse_cut
from finetune.errors import DataError, Key
from finetune.importing import package_path, require
from finetune.models.shapes import first_line

_OFFLINE = "offline, give a folder made by save_to_disk, or a file: {type: parquet, ...}"
_FALLS_BACK = "Using the latest cached version"
"""Beginning of what the library logs when it takes its cache because the hub does not answer."""


def load_set(source: HuggingFaceSource, within: Path | None, key: Key) -> Any:
    """Return a data set from a folder of `save_to_disk`, or else as `datasets` loads it.

    Args:
        source: Names it.
        within: Folder that links may lead to; None for the folder itself alone.
        key: Position of the source in the config.

    Raises:
        DataError: it cannot be loaded, a file of it is damaged, or the hub does not answer and the
            cache may hold another revision than is asked for.
    """
    path = package_path(source.path, key=(*key, "path"))
    # `load_dataset` does not read these folders, and `load_from_disk` reads no others.
    if is_saved(path):
        return load_saved(path, source.part, within, key)
    datasets = require("datasets", extra="data")
    try:
        with _fall_backs(datasets) as fallen:
            found = datasets.load_dataset(
                str(path) if path.exists() else source.path,
                name=source.config,
                split=source.part,
                revision=source.revision,
            )
    except (*FAULTS, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load {source.path!r}: {first_line(error)}",
            hint=None if path.exists() else _hint(datasets, source.path),
            key=(*key, "path"),
        ) from error
    files = [Path(one["filename"]) for one in found.cache_files]
    refuse_cut(files, hint=_hint(datasets, source.path))
    if fallen and source.revision is not None:
        _refuse_other_revision(source, files, key)
    return found


@contextmanager
def _fall_backs(datasets: Any) -> Iterator[list[str]]:
    """Yield a list that is filled when the library takes its cache in place of the hub."""
    # The library says so in its log alone, and returns the cached data set like any other.
    found, logger = list[str](), logging.getLogger(datasets.load.__name__)

    def note(record: logging.LogRecord) -> bool:
        if (told := record.getMessage()).startswith(_FALLS_BACK):
            found.append(told)
        return True

    logger.addFilter(note)
    try:
        yield found
    finally:
        logger.removeFilter(note)


def _hint(datasets: Any, name: str) -> str:
    """Return a hint that names the folder of a data set in the library's cache, if it has one."""
    *owner, own = name.split("/")
    folder = "___".join([*owner, datasets.naming.camelcase_to_snakecase(own)])
    place = Path(datasets.config.HF_DATASETS_CACHE, folder)
    return f"remove its cache {str(place)!r} and load it again" if place.is_dir() else _OFFLINE


def _refuse_other_revision(source: HuggingFaceSource, files: list[Path], key: Key) -> None:
    """Raise unless the commit whose data set lies in the cache is the one that is asked for.

    Offline the library takes whatever it has, and passes over the revision.
    """
    commits = sorted({file.parent.name for file in files})
    if not commits or not all(one.startswith(str(source.revision)) for one in commits):
        raise DataError(
            f"the hub does not answer, and its cache holds the commit {', '.join(commits)}, of "
            f"which nobody can tell whether it is the revision {source.revision!r}",
            hint="give the commit itself as revision, or leave it out to take what is there",
            key=(*key, "revision"),
        )
