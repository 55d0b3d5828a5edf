"""Columns of data sets of the `datasets` library, and of the Parquet files that it writes."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.images import first_leaving, images_of, leaves, named_files
from finetune.data.readers.parquet import cannot_read
from finetune.data.table import Column, Listed, Unread
from finetune.errors import DataError
from finetune.importing import require


def parquet_columns(
    file: BinaryIO, name: str, folder: Path, wanted: Collection[str] | None
) -> dict[str, Column]:
    """Read a Parquet file that `datasets` has written, with its images and names of classes.

    The whole file comes into memory; `datasets` would first write a copy into its cache.

    Args:
        file: The file.
        name: What it is called in messages.
        folder: What names in it are relative to.
        wanted: The columns to be read; None for all.

    Raises:
        DataError: it cannot be read, or names an image that it does not hold.
    """
    datasets = require("datasets", extra="data")
    parquet, arrow = (
        require("pyarrow.parquet", extra="data"),
        require("pyarrow", extra="data"),
    )
    try:
        with quiet(datasets):
            dataset = datasets.Dataset(parquet.read_table(file))
            others = [] if wanted is None else sorted({*dataset.column_names} - {*wanted})
            unread = Unread.column(len(dataset))
            dataset = dataset.remove_columns(others)
            _refuse_names_of_images(dataset, name)
            return dataset_columns(dataset, folder, folder) | dict.fromkeys(others, unread)
    except (arrow.ArrowException, OSError) as error:
        raise cannot_read(name, error) from error


def _refuse_names_of_images(dataset: Any, name: str) -> None:
    """Refuse an image that the file does not hold but only names, wherever that may be."""
    datasets = require("datasets", extra="data")
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image) and (named := _named_by(dataset, column)):
            raise DataError(
                f"column {column!r} holds no image in row {next(iter(named)) + 1}",
                hint="store the images themselves in the file, or name them in a csv file",
                where=name,
            )


def _named_by(dataset: Any, column: str) -> dict[int, str]:
    """Return by row the names of images that a column does not hold."""
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    parts = cells.combine_chunks()
    lacking = parts.field("bytes").is_null().to_pylist()
    if True not in lacking:
        return {}
    names = parts.field("path").to_pylist()
    return {row: name or "" for row, name in enumerate(names) if lacking[row]}


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Keep the progress bars of `datasets` off the terminal."""
    were_off = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def dataset_columns(dataset: Any, folder: Path, within: Path) -> dict[str, Column]:
    """Turn the columns of a `datasets.Dataset` into ours.

    Raises:
        DataError: an image is named, and lies outside `within`.
    """
    names = dataset.column_names
    return {name: _dataset_column(dataset, name, folder, within) for name in names}


def _dataset_column(dataset: Any, name: str, folder: Path, within: Path) -> Column:
    """Turn a column of a `datasets.Dataset` into ours: classes by name, images undecoded.

    Raises:
        DataError: an image is named, and lies outside `within`.
    """
    datasets = require("datasets", extra="data")
    feature, dataset = dataset.features[name], dataset.select_columns([name])
    if isinstance(feature, datasets.Image):
        encoded = dataset.cast_column(name, datasets.Image(decode=False)).with_format(None)
        named = _named_by(encoded, name)
        files = named_files(list(named.values()), folder)
        if (position := first_leaving(files, within)) is not None:
            row = list(named)[position]
            raise leaves(f"row {row + 1} of column {name!r}", named[row], folder, within)
        return images_of(_Rows(encoded, name, folder))
    column = dataset.with_format("arrow")[:].column(name)
    values = column.to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        known = [None if value in (None, -1) else feature.int2str(value) for value in values]
        return Listed(known, "things")
    return Listed(values, "things")


@dataclass(frozen=True, slots=True)
class _Rows(Sequence[Any]):
    """One column of a `datasets.Dataset`, read from its memory-mapped file row by row."""

    dataset: Any
    name: str
    folder: Path
    """Folder that relative names of images start from."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return named_files([self.dataset[index][self.name]], self.folder)[0]
