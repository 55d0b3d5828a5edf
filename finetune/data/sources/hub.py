"""Read columns from data sets of the `datasets` library, and from Parquet files it wrote."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.audio import audio_of
from finetune.data.images import images_of
from finetune.data.media.waveforms import SoundRules
from finetune.data.readers.mapped import LEAST_BYTES, TEXT_TYPES, mapped_cells
from finetune.data.readers.parquet import CELL_FAULTS, cannot_read, cannot_read_column
from finetune.data.sources.file_names import What, first_leaving, leaves, named_files
from finetune.data.table import Column, Listed, Unread
from finetune.errors import DataError
from finetune.importing import require


def parquet_columns(
    file: BinaryIO, name: str, folder: Path, wanted: Collection[str] | None
) -> dict[str, Column]:
    """Return the columns of a Parquet file that `datasets` wrote, with images and class names.

    The whole file is read into memory; `datasets` would first write a copy into its cache.

    Args:
        file: The file.
        name: Its name in messages.
        folder: Folder that names in it are relative to.
        wanted: The columns to read; None for all.

    Raises:
        DataError: it cannot be read, or names an image that it does not contain.
    """
    datasets = require("datasets", extra="data")
    parquet, arrow = (
        require("pyarrow.parquet", extra="data"),
        require("pyarrow", extra="data"),
    )
    with quiet(datasets):
        try:
            dataset = datasets.Dataset(parquet.read_table(file))
        # The library takes names of columns and its metadata in the file as they are.
        except (arrow.ArrowException, OSError, AttributeError, *CELL_FAULTS) as error:
            raise cannot_read(name, error) from error
        # `datasets` would open whatever path the file names.
        _refuse_names_of_images(dataset, name, wanted)
        return dataset_columns(dataset, folder, folder, name, wanted)


def _refuse_names_of_images(dataset: Any, name: str, wanted: Collection[str] | None) -> None:
    """Raise if the file only names an image, which could be anywhere, instead of containing it."""
    datasets = require("datasets", extra="data")
    for column, feature in dataset.features.items():
        if wanted is not None and column not in wanted:
            continue
        what = "image" if isinstance(feature, datasets.Image) else "recording"
        is_file = isinstance(feature, datasets.Image | datasets.Audio)
        if is_file and (named := _named_by(dataset, column)):
            raise DataError(
                f"column {column!r} holds no {what} in row {next(iter(named)) + 1}",
                hint=f"store the {what}s themselves in the file, or name them in a csv file",
                where=name,
            )


def _named_by(dataset: Any, column: str) -> dict[int, str]:
    """Return the names of images that a column does not contain, by row."""
    # In Arrow: through `datasets` each image would be decoded, or read from where it is named.
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    parts = cells.combine_chunks()
    lacking = parts.field("bytes").is_null().to_pylist()
    if True not in lacking:
        return {}
    names = parts.field("path").to_pylist()
    return {row: name or "" for row, name in enumerate(names) if lacking[row]}


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Switch off progress bars of `datasets` during the block."""
    were_off = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def dataset_columns(
    dataset: Any, folder: Path, within: Path, where: str, wanted: Collection[str] | None
) -> dict[str, Column]:
    """Return the columns of a `datasets.Dataset` as ours, by name.

    Args:
        dataset: The data set.
        folder: Folder that names of files are relative to.
        within: Folder that these must not leave.
        where: What the data set was read from, for messages.
        wanted: The columns to read; None for all.

    Raises:
        DataError: a named image is outside of `within`, or a column is damaged.
    """
    made: dict[str, Column] = {}
    unread = Unread.column(len(dataset))
    for name in dataset.column_names:
        if wanted is not None and name not in wanted:
            made[name] = unread
            continue
        try:
            made[name] = _dataset_column(dataset, name, folder, within)
        except CELL_FAULTS as error:
            raise cannot_read_column(name, where, error) from error
    return made


def _dataset_column(dataset: Any, name: str, folder: Path, within: Path) -> Column:
    """Return one column of a `datasets.Dataset`: classes by name, images not decoded.

    Raises:
        DataError: a named image is outside of `within`.
        ValueError: the column is damaged.
    """
    datasets = require("datasets", extra="data")
    feature, dataset = dataset.features[name], dataset.select_columns([name])
    column = dataset.with_format("arrow")[:].column(name)
    # Places in a damaged file may lie outside of it, and to read such a cell ends the process.
    column.validate(full=True)
    if isinstance(feature, datasets.Image | datasets.Audio):
        # Not decoded: that is done by `decoding.py` and `waveforms.py` alone, by their rules.
        kind = datasets.Image if isinstance(feature, datasets.Image) else datasets.Audio
        encoded = dataset.cast_column(name, kind(decode=False)).with_format(None)
        named = _named_by(encoded, name)
        what: What = "image" if kind is datasets.Image else "recording"
        files = named_files(list(named.values()), folder, what)
        if (position := first_leaving(files, within)) is not None:
            row = list(named)[position]
            raise leaves(f"row {row + 1} of column {name!r}", named[row], folder, within)
        rows = _Rows(encoded, name, folder, what)
        return images_of(rows) if what == "image" else audio_of(rows, SoundRules())
    if str(column.type) in TEXT_TYPES and column.nbytes >= LEAST_BYTES:
        # The library has mapped its file already: no text is an object before it is read.
        return Listed(mapped_cells(column), "things")
    values = column.to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        return Listed(_class_names(values, feature), "things")
    # Tags, such as one for each word of a text.
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return Listed([row and _class_names(row, inner) for row in values], "things")
    return Listed(values, "things")


def _class_names(numbers: Sequence[int | None], feature: Any) -> list[str | None]:
    """Return the names of class numbers; None for a missing label, which `datasets` marks by -1."""
    return [None if number in (None, -1) else feature.int2str(number) for number in numbers]


@dataclass(frozen=True, slots=True)
class _Rows(Sequence[Any]):
    """A column of a `datasets.Dataset`, read row by row from its memory-mapped file."""

    dataset: Any
    name: str
    folder: Path
    """Folder that names of files are relative to."""
    what: What

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return named_files([self.dataset[index][self.name]], self.folder, self.what)[0]
