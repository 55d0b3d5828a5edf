"""Open a source of any kind as one table of columns."""

from collections.abc import Collection
from pathlib import Path
from typing import assert_never

import torch

from finetune.config.data import DataConfig
from finetune.config.source_keys import (
    ArraysSource,
    AudioFolderSource,
    CocoSource,
    CsvSource,
    HuggingFaceSource,
    ImageFolderSource,
    ImportSource,
    JsonlSource,
    NamingSource,
    ParquetSource,
    RandomSource,
    SklearnSource,
    Source,
    TextFolderSource,
)
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.sources import files
from finetune.data.sources.arrays import read_arrays
from finetune.data.sources.coco import FoundCoco, read_coco
from finetune.data.sources.hub import dataset_columns, quiet
from finetune.data.sources.hub_sets import load_set
from finetune.data.sources.imported_columns import read_imported
from finetune.data.sources.large_tables import read_large_tables
from finetune.data.sources.tabular import FORM_OF, dialect_of, tables_below
from finetune.data.table import Column, Numbers, Table, as_tensor
from finetune.errors import DataError, Key
from finetune.importing import package_path, require

_OtherSource = (
    TextFolderSource
    | ImageFolderSource
    | AudioFolderSource
    | CocoSource
    | ArraysSource
    | SklearnSource
    | RandomSource
    | HuggingFaceSource
    | ImportSource
)


def sources_of(config: DataConfig) -> dict[str, tuple[Source, Key]]:
    """Return the source of each part with its position in the config, the training part first.

    One source that is split later counts as the training part.
    """
    if config.source is not None:
        return {"train": (config.source, ("data", "source"))}
    sources = {"train": config.train, "validation": config.validation, "test": config.test}
    return {
        part: (source, ("data", part)) for part, source in sources.items() if source is not None
    }


def open_source(
    source: Source,
    trust: Collection[str],
    key: Key,
    wanted: Collection[str] | None = None,
    known: KnownFiles | None = None,
) -> Table:
    """Return the table of a source; the kinds of its columns are decided where they are used.

    Args:
        source: The config node.
        trust: Names of packages whose code may be imported.
        key: Position of the node in the config.
        wanted: The columns of a table or data set whose cells are read; None for all.
        known: Says where large tables are kept, and receives notes; None to keep nothing.

    Raises:
        DataError: it is missing, unreadable or empty, or its columns differ in length.
    """
    within = _within(source, key)
    if isinstance(source, CsvSource | JsonlSource | ParquetSource):
        return _opened_tables(source, within, key, wanted, known)
    notes: list[str] = []
    columns, name, folder = _read(source, within, trust, key, notes, wanted)
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of different lengths: {lengths}", key=key)
    count = next(iter(lengths.values()), 0)
    if count == 0:
        # Files that were skipped are the likely reason.
        raise DataError(f"no samples in {name}", hint=notes[0] if notes else None, key=key)
    return Table(columns, torch.arange(count), name, folder, within, notes=tuple(notes))


def _opened_tables(
    source: CsvSource | JsonlSource | ParquetSource,
    within: Path | None,
    key: Key,
    wanted: Collection[str] | None,
    known: KnownFiles | None,
) -> Table:
    """Return the rows of a table file, or of all tables in a folder."""
    path = package_path(source.path, key=(*key, "path"))
    found = tables_below(path, within, (*key, "path"), source.type)
    try:
        read = read_large_tables(
            found.paths, dialect_of(source), FORM_OF[source.type], wanted, known
        )
    except DataError as error:
        error.key = error.key or (*key, "path")
        raise
    if read.count == 0:
        raise DataError(f"no samples in {path}", key=key)
    # A pattern names files of one folder alone, so that the first one tells it.
    folder = found.paths[0].parent if not path.is_dir() else path
    if source.folder is not None:
        folder = files.existing(source.folder, (*key, "folder"), folder=True)
    rows = torch.arange(read.count)
    notes = (*found.notes, *read.notes)
    return Table(read.columns, rows, str(path), folder, within, read.places, notes, read.kept)


def _within(source: Source, key: Key) -> Path | None:
    """Return the folder that files named in the data must not leave, if the config names one."""
    if not isinstance(source, NamingSource | ImportSource) or source.within is None:
        return None
    return files.existing(source.within, (*key, "within"), folder=True)


def _read(
    source: _OtherSource,
    within: Path | None,
    trust: Collection[str],
    key: Key,
    notes: list[str],
    wanted: Collection[str] | None,
) -> tuple[dict[str, Column], str, Path | None]:
    """Return the columns of a source, its name for messages, and the folder for names in it.

    Lines for the user are added to `notes`.
    """
    match source:
        case ArraysSource():
            path = files.existing(source.path, (*key, "path"), folder=False)
            return read_arrays(path, source, key), str(path), path.parent
        case TextFolderSource() | ImageFolderSource() | AudioFolderSource():
            path = files.existing(source.path, (*key, "path"), folder=True)
            columns, found = _read_folder(source, path, within, key)
            notes += found
            return columns, str(path), None
        case CocoSource():
            found_coco, path, folder = _of_coco(source, key)
            notes += found_coco.notes
            return found_coco.columns, str(path), folder
        case SklearnSource():
            return _bundled(source), source.name, None
        case RandomSource():
            return _drawn(source, key), "random", None
        case HuggingFaceSource():
            folder = _folder_of(source, key)
            return _hub_columns(source, folder, within, key, wanted), source.path, folder
        case ImportSource():
            # Names in the data are relative to the current folder, as in the user's own code.
            columns = read_imported(source, within, trust, key, wanted)
            return columns, source.path, Path()
        case _:
            assert_never(source)


def _read_folder(
    source: TextFolderSource | ImageFolderSource | AudioFolderSource,
    path: Path,
    within: Path | None,
    key: Key,
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Return the columns of a folder of classes, and notes."""
    within = within or path
    if isinstance(source, TextFolderSource):
        return files.read_text_folder(path, source, within, key)
    if isinstance(source, AudioFolderSource):
        return files.read_audio_folder(path, source, within, key)
    return files.read_image_folder(path, source, within, key)


def _of_coco(source: CocoSource, key: Key) -> tuple[FoundCoco, Path, Path]:
    """Return images and boxes of a file of COCO, the file, and the folder of the images."""
    path = files.existing(source.path, (*key, "path"), folder=False)
    folder = path.parent
    if source.folder is not None:
        folder = files.existing(source.folder, (*key, "folder"), folder=True)
    return read_coco(path, (*key, "path")), path, folder


def _bundled(source: SklearnSource) -> dict[str, Column]:
    """Return the columns of a data set that scikit-learn contains."""
    bunch = getattr(require("sklearn.datasets", extra="data"), f"load_{source.name}")()
    target = Numbers(as_tensor(bunch.target, "target"))
    if source.name == "digits":
        # Pixels of `digits` are 0 to 16.
        images = as_tensor(bunch.images, "image").unsqueeze(1) / 16
        return {"image": Numbers(images), "label": target}
    named = "target" if source.name in {"diabetes", "linnerud"} else "label"
    return {"features": Numbers(as_tensor(bunch.data, "features")), named: target}


def _drawn(source: RandomSource, key: Key) -> dict[str, Column]:
    """Return `features` and `target`, each `(samples, ...)`, of normal numbers drawn by seed."""
    draw = torch.Generator().manual_seed(source.seed)
    try:
        # Features first: in another order the same seed would give other numbers.
        features = torch.randn(source.samples, *source.features, generator=draw)
        targets = torch.randn(source.samples, *source.targets, generator=draw)
    # torch raises a RuntimeError where Python would raise a MemoryError.
    except (RuntimeError, MemoryError) as error:
        raise DataError("more numbers than memory holds", key=(*key, "samples")) from error
    return {"features": Numbers(features), "target": Numbers(targets)}


def _folder_of(source: HuggingFaceSource, key: Key) -> Path:
    """Return the folder that names in a data set are relative to: its own, or the hub's cache."""
    path = package_path(source.path, key=(*key, "path"))
    if path.exists():
        return path if path.is_dir() else path.parent
    return Path(require("datasets", extra="data").config.HF_CACHE_HOME)


def _hub_columns(
    source: HuggingFaceSource,
    folder: Path,
    within: Path | None,
    key: Key,
    wanted: Collection[str] | None,
) -> dict[str, Column]:
    """Return the columns of a data set loaded by `datasets`; turn its errors into `DataError`."""
    datasets = require("datasets", extra="data")
    with quiet(datasets):
        dataset = load_set(source, within, key)
        return dataset_columns(dataset, folder, within or folder, source.path, wanted)
