"""Open a source of any kind as one table of columns."""

from collections.abc import Collection, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

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
from finetune.data.sources.large_tables import read_large_tables
from finetune.data.sources.saved_folders import is_saved, load_saved
from finetune.data.sources.tabular import FORM_OF, dialect_of, tables_below
from finetune.data.table import Column, Listed, Numbers, Table, as_tensor
from finetune.errors import DataError, FinetuneError, Key
from finetune.importing import call_trusted, package_path, require
from finetune.models.shapes import first_line

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
            columns = _imported(source, within, trust, key, wanted)
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


_OFFLINE = "offline, give a folder made by save_to_disk, or a file: {type: parquet, ...}"


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
        try:
            dataset = _load(datasets, source, within, key)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"cannot load {source.path!r}: {first_line(error)}",
                hint=None if Path(source.path).exists() else _OFFLINE,
                key=(*key, "path"),
            ) from error
        return dataset_columns(dataset, folder, within or folder, source.path, wanted)


def _load(datasets: Any, source: HuggingFaceSource, within: Path | None, key: Key) -> Any:
    """Return a data set from a folder of `save_to_disk`, or else as `datasets` loads it."""
    path = package_path(source.path, key=(*key, "path"))
    # `load_dataset` does not read these folders, and `load_from_disk` reads no others.
    if is_saved(path):
        return load_saved(path, source.part, within, key)
    return datasets.load_dataset(
        str(path) if path.exists() else source.path,
        name=source.config,
        split=source.part,
        revision=source.revision,
    )


def _imported(
    source: ImportSource,
    within: Path | None,
    trust: Collection[str],
    key: Key,
    wanted: Collection[str] | None,
) -> dict[str, Column]:
    """Return the columns that the user's own code gives."""
    data = call_trusted(source.path, source.args, trust, key=key)
    if isinstance(data, Mapping):
        with _naming_code(repr(source.path), key):
            found = list(data.items())
        return {str(name): _column(str(name), values, source, key) for name, values in found}
    # One that is read as a stream has no number of samples.
    is_of_datasets = type(data).__module__.startswith("datasets.") and hasattr(data, "__len__")
    if is_of_datasets:
        with quiet(require("datasets", extra="data")):
            return dataset_columns(data, Path(), within or Path(), source.path, wanted)
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        return _items_by_column(data, source, key)
    raise DataError(
        f"{source.path!r} returned {type(data).__name__}; expected a mapping of columns, a "
        "datasets.Dataset or a map-style torch Dataset",
        key=(*key, "path"),
    )


@contextmanager
def _naming_code(what: str, key: Key) -> Iterator[None]:
    """Turn whatever an object of the user's raises while it is read into a line that names it.

    Only the user's own code may run within: what our own raises is a bug, and keeps its traceback.
    """
    try:
        yield
    except (FinetuneError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{what} cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="call it in Python: the error there names the line of your code",
            key=(*key, "path"),
        ) from error


def _column(name: str, values: Any, source: ImportSource, key: Key) -> Column:
    """Return the values of one column from user code as a column.

    Raises:
        DataError: it is no column, or numbers of it are masked or have no data.
    """
    is_array = isinstance(values, np.ndarray | Tensor)
    if isinstance(values, Tensor) and not _has_plain_memory(values):
        raise DataError(
            f"column {name!r} is a tensor whose numbers do not lie in memory one after another",
            hint="such are tensors on the device meta, sparse and quantized ones",
            key=key,
        )
    if is_array and values.ndim and _is_of_numbers(values):
        if _is_masked(values):
            raise DataError(
                f"column {name!r} has masked numbers",
                hint="fill them in by values.filled(...), or leave such samples out",
                key=key,
            )
        return Numbers(as_tensor(values, name))
    if not hasattr(values, "__len__") or isinstance(values, str) or (is_array and not values.ndim):
        raise DataError(f"column {name!r} is {type(values).__name__}, not samples", key=key)
    with _naming_code(f"column {name!r} of {source.path!r}", key):
        cells = list(values)
    return _listed(name, cells, key)


def _has_plain_memory(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_quantized) and tensor.layout is torch.strided


def _is_of_numbers(values: np.ndarray[Any, Any] | Tensor) -> bool:
    """Tell whether an array holds real numbers."""
    if isinstance(values, Tensor):
        return not values.is_complex()
    return values.dtype.kind in "biuf"


def _is_masked(value: Any) -> bool:
    """Tell whether numpy hides a number of an array; torch would take what lies under the mask."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


def _listed(name: str, cells: list[Any], key: Key) -> Column:
    """Return single values as a column.

    Raises:
        DataError: one is a tensor without data, or a masked number.
    """
    for position, cell in enumerate(cells):
        if _is_masked(cell) or (isinstance(cell, Tensor) and cell.is_meta):
            raise DataError(f"column {name!r} has no data in sample {position}", key=key)
    return Listed(cells, "things")


def _items_by_column(data: Any, source: ImportSource, key: Key) -> dict[str, Column]:
    """Return the samples of a torch `Dataset` as columns; tuples give the columns `x` and `y`."""
    # Each sample once: to fetch one may be slow, or random.
    samples: list[Any] = []
    with _naming_code(repr(source.path), key):
        count = len(data)
    for position in range(count):
        with _naming_code(f"sample {position} of {source.path!r}", key):
            samples.append(data[position])
    if all(isinstance(sample, tuple | list) and len(sample) == 2 for sample in samples):
        samples = [{"x": sample[0], "y": sample[1]} for sample in samples]
    strange = next((sample for sample in samples if not isinstance(sample, Mapping)), None)
    if strange is not None:
        raise DataError(
            f"{source.path!r} gives samples of type {type(strange).__name__}; expected a dict, or "
            "a tuple (x, y)",
            key=(*key, "path"),
        )
    names = dict.fromkeys(str(name) for sample in samples for name in sample)
    return {name: _listed(name, [one.get(name) for one in samples], key) for name in names}
