"""Find out what a file or folder holds, as keys of `data:` that read it, or refuse it."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetune.config.data import DataConfig
from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.data.readers.any_form import beginning_of, form_of
from finetune.data.readers.chunks import Dialect, Reading
from finetune.data.readers.forms import decodes, has_table_ending, opened_bytes
from finetune.data.readers.separated import found_separator, header_of, separator_hint
from finetune.data.sources.open_source import open_source
from finetune.data.table import Column, Listed
from finetune.errors import DataError, did_you_mean, named
from finetune.starting.cells_of_gaps import is_plain_number
from finetune.starting.other_layouts import refuse_coco

DataKind = Literal["table", "texts", "images", "recordings", "arrays"]
Keys = dict[str, Any]
"""Keys of a source, as a config has them."""
_ENCODINGS = ("utf-8", "cp1252", "latin-1")
"""Encodings that are tried, in order; the last one takes any bytes."""
_UNREAD = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), "Python objects"),
    **dict.fromkeys((".pt", ".pth"), "torch"),
    **dict.fromkeys((".h5", ".hdf5"), "HDF5"),
    ".mat": "Matlab",
    ".rds": "R",
    ".sav": "SPSS",
    ".dta": "Stata",
}
"""Endings of files that hold data, and of what; most would run code when they are opened."""
_WHAT_IS_READ = (
    "init reads a table (csv, tsv, JSON, Parquet), an .npz, a folder of class folders, or images "
    "with a table of labels"
)


@dataclass(frozen=True, slots=True)
class FoundData:
    """Data that a config can read.

    Args:
        kind: What it holds.
        sources: Keys of each source, by their key below `data`: `source` alone, or `train` and
            others.
        columns: Columns of the training samples.
        num_rows: Number of training samples.
        told: Lines on how it was found, for the user.
        folder: Folder that names of files in a table are relative to; None if there is no table.
    """

    kind: DataKind
    sources: Mapping[str, Keys]
    columns: Mapping[str, Column]
    num_rows: int
    told: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def first(self) -> Keys:
        """Keys of the source of the training samples."""
        return next(iter(self.sources.values()))


def opened(kind: DataKind, sources: Mapping[str, Keys], told: Sequence[str] = ()) -> FoundData:
    """Return the data that sources read, after reading that of the training samples.

    Raises:
        DataError: it cannot be read, or holds no samples.
    """
    for name, keys in sources.items():
        node = DataConfig.model_validate({"source": keys}).source
        assert node is not None
        if name in ("source", "train"):
            # The other parts are not read: everything is chosen by the training samples.
            table = open_source(node, (), ())
            found = FoundData(kind, dict(sources), table.columns, len(table), tuple(told))
            found = replace(found, told=(*found.told, *table.notes), folder=table.folder)
    return found


def without_key(error: DataError) -> DataError:
    """Return an error of a source as one of the path that the user named: there is no config."""
    error.key = ()
    return error


def refuse_missing(path: Path) -> None:
    """Raise `DataError` if nothing is at a path, with a name that resembles it."""
    if path.exists():
        return
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(
        f"no such file or folder {str(path)!r}",
        hint=did_you_mean(path.name, beside) or f"give the path of your data; {_WHAT_IS_READ}",
    )


def found_in_file(path: Path) -> FoundData:
    """Return the data of one file.

    Raises:
        DataError: it holds none that a config could begin with.
    """
    if not path.is_file():
        raise DataError(
            "is a device or a pipe, which a config cannot read again",
            where=str(path),
            hint="save its contents to a file first",
        )
    ending = path.suffix.lower()
    _refuse_no_data(path, ending)
    try:
        if ending in (".npz", ".npy"):
            return opened_arrays(path)
        keys, told = keys_of_table(path)
        found = opened("table", {"source": keys}, told)
        if found.num_rows == 1 and keys["type"] == "json":
            _refuse_one_object(path, found)
        return found
    except DataError as error:
        raise without_key(error) from error


def _refuse_no_data(path: Path, ending: str) -> None:
    """Raise `DataError` if a file is of a kind that is told by its ending, and no data to read."""
    if ending in (".yaml", ".yml"):
        raise DataError("is a config already", where=str(path), hint=f"finetune plan {path}")
    if ending in _UNREAD:
        raise DataError(
            f"is a file of {_UNREAD[ending]}, which init does not read",
            where=str(path),
            hint="save it there as a csv, Parquet or .npz",
        )
    if ending == ".json":
        refuse_coco(path)
    if ending in IMAGE_ENDINGS | AUDIO_ENDINGS:
        what = "image" if ending in IMAGE_ENDINGS else "recording"
        hint = f"name the folder that holds one folder of {what}s for each class"
        raise DataError(f"is a single {what}, too few to learn from", where=str(path), hint=hint)


def _refuse_one_object(path: Path, found: FoundData) -> None:
    """Raise `DataError` if a JSON file is one object with the samples in a list inside it."""
    for name, column in found.columns.items():
        cell = column.values[0] if isinstance(column, Listed) else None
        if isinstance(cell, list) and len(cell) > 1 and isinstance(cell[0], Mapping):
            raise DataError(
                f"is one object, whose {name!r} holds {len(cell):,} samples",
                where=str(path),
                hint=f"save that list alone: jq {shlex.quote('.' + json.dumps(name))} "
                f"{shlex.quote(str(path))} > samples.json",
            )


def opened_arrays(path: Path) -> FoundData:
    """Return the data of a file of arrays; train and test in one file become two sources."""
    whole = (
        opened("arrays", {"source": {"type": "arrays", "path": str(path)}})
        if (path.suffix.lower() == ".npy")
        else _opened_archive(path)
    )
    if len(whole.columns) < 2:
        raise DataError(
            "holds one array, and nothing to learn from it",
            where=str(path),
            hint="an .npz with arrays such as x and y, samples first, is read as a whole",
        )
    return whole


_PARTS_OF_ARRAYS = (("train", "train"), ("validation", "val"), ("test", "test"))


def _opened_archive(path: Path) -> FoundData:
    """Return the arrays of an `.npz`, split if their names say so (`x_train`, `y_test`)."""
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, BadZipFile) as error:
        raise DataError("is no archive of arrays", where=str(path)) from error
    sources = {}
    for part, word in _PARTS_OF_ARRAYS:
        held = {name: _without(name, word) for name in names if word in name.lower().split("_")}
        if len(held) > 1:
            columns = {short: {"array": name} for name, short in held.items()}
            sources[part] = {"type": "arrays", "path": str(path), "columns": columns}
    if "train" not in sources:
        return opened("arrays", {"source": {"type": "arrays", "path": str(path)}})
    told = [f"parts: {', '.join(sources)}, as the names of the arrays in {path.name} say"]
    return opened("arrays", sources, told)


def _without(name: str, word: str) -> str:
    """Return the name of an array without the word for its part."""
    return "_".join(part for part in name.split("_") if part.lower() != word)


def keys_of_table(path: Path) -> tuple[Keys, list[str]]:
    """Return the keys that read a table file, and lines on what was found out.

    Raises:
        DataError: it is no table with named columns.
    """
    with opened_bytes(path) as file:
        encoding = _encoding_of(file)
        form = form_of(file, Reading(path.name, Dialect(encoding=encoding)), None)
        if form != "separated":
            return {"type": {"json": "json", "parquet": "parquet"}[form], "path": str(path)}, []
        beginning = beginning_of(file, Reading(path.name, Dialect(encoding=encoding)))
    separator = found_separator(beginning.partition("\n")[0])
    _refuse_without_header(path, beginning, separator)
    keys: Keys = {"type": "csv", "path": str(path)}
    told = []
    if separator != ",":
        keys["separator"] = separator
        told.append(f"separator: {separator!r}, which is most frequent in the first line")
    if encoding != "utf-8":
        keys["encoding"] = encoding
        told.append(f"encoding: {encoding}, since {path.name} is not valid UTF-8")
    return keys, told


def _encoding_of(file: Any) -> str:
    """Return the first encoding that decodes all of a file; its position is restored."""
    mark = file.read(2)
    file.seek(0)
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-8"  # the mark says the encoding, which the reader follows
    return next((one for one in _ENCODINGS if decodes(file, one)), _ENCODINGS[-1])


def _refuse_without_header(path: Path, beginning: str, separator: str) -> None:
    """Raise `DataError` unless the first line names two columns or more."""
    names = header_of(beginning, separator, '"')
    if not beginning.strip():
        raise DataError("is empty", where=str(path), hint=_WHAT_IS_READ)
    if len(names) < 2:
        raise DataError(
            "holds lines without columns, and nothing to learn from them",
            where=str(path),
            hint=separator_hint(names, separator)
            or "a csv names its columns in the first line, such as text,label",
        )
    if all(is_plain_number(name) for name in names):
        raise DataError(
            "has no names of columns: its first line holds numbers",
            where=str(path),
            hint="put a line with names above the first row, such as "
            + ",".join(f"x{place}" for place in range(1, min(len(names), 4)))
            + ("" if len(names) < 5 else ",...")
            + ",label",
        )
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise DataError(
            f"has several columns called {named(twice)}",
            where=str(path),
            hint="give each column a name of its own, in the first line",
        )


def is_table(file: Path) -> bool:
    """Tell whether a file is a table by its name."""
    return has_table_ending(file)
