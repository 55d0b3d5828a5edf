"""Open a folder that `save_to_disk` of the `datasets` library wrote, and name its damaged file.

The library trusts such a folder. Its errors name no file, and some are no errors at all: it reads
whatever files `state.json` names.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.sources.folders import refuse_leaving
from finetune.errors import DataError, Key
from finetune.importing import require
from finetune.models.shapes import first_line
from finetune.reading import first_outside, read_json_object

_STATE, _INFO, _PARTS = "state.json", "dataset_info.json", "dataset_dict.json"
_WHOLE = "copy the folder again: each data set needs {} and {} beside its .arrow files"
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""Errors of the library for a folder whose files it did not write so: JSON with other contents, and
damaged files of Arrow (OSError and ValueError)."""
_MARK = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a stream of Arrow."""


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`, though files of it may be lost."""
    if any((path / name).is_file() for name in (_STATE, _PARTS)):
        return True
    # Without its state the library would read whichever .arrow files are left.
    return (path / _INFO).is_file() and any(path.glob("data-*-of-*.arrow"))


def load_saved(path: Path, part: str, within: Path | None, key: Key) -> Any:
    """Return the data set in a folder, or the part of this name where it has several.

    Args:
        path: The folder.
        part: Name of the part; of no meaning where the folder holds one data set alone.
        within: Folder that links may lead to; None for the folder itself alone.
        key: Position of the source in the config.

    Raises:
        FinetuneError: a file is missing, damaged, or outside of the folder; or there is no such
            part.
    """
    if not (path / _PARTS).is_file():
        return _load(path, within, key)
    parts = _listed(read_json_object(path / _PARTS), "splits", path / _PARTS)
    if not all(isinstance(name, str) for name in parts):
        raise DataError("'splits' holds other things than names", where=str(path / _PARTS))
    if part not in parts:
        raise DataError(f"no part {part!r}; there are: {', '.join(parts)}", key=(*key, "part"))
    return _load(path / part, within, key)


def _load(path: Path, within: Path | None, key: Key) -> Any:
    """Return the data set in a folder."""
    datasets = require("datasets", extra="data")
    # Read only for its faults: the library's error for a damaged one names no file.
    read_json_object(path / _INFO)
    files = _arrow_files(path, within, key)
    try:
        return datasets.load_from_disk(str(path))
    except (*FAULTS, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot be read: {first_line(_reason(error))}",
            hint=_WHOLE.format(_STATE, _INFO),
            where=str(_damaged(files) or path),
        ) from error


def _reason(error: Exception) -> Exception:
    """Return the error to tell: the text of a `KeyError` is a name alone."""
    return ValueError(f"{error} is missing") if isinstance(error, KeyError) else error


def _arrow_files(path: Path, within: Path | None, key: Key) -> list[Path]:
    """Return the files with the samples of a folder."""
    state = path / _STATE
    entries = _listed(read_json_object(state), "_data_files", state)
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    # For a name with a zero byte Python raises a ValueError in place of finding no file.
    files = [path / name for name in names if isinstance(name, str) and "\0" not in name]
    if len(files) < len(names) or not names:
        raise DataError("names no .arrow file", hint=_WHOLE.format(_STATE, _INFO), where=str(state))
    # The folder itself is always meant: `within` may name that of the images alone.
    elsewhere = [file for file in files if first_outside([file], path) is not None]
    refuse_leaving(elsewhere, within or path, key=(*key, "path"))
    if lost := [file for file in files if not file.is_file()]:
        many = f" (1 of {len(lost)} missing files)" if len(lost) > 1 else ""
        raise DataError(f"is missing{many}, {_STATE} names it", where=str(lost[0]))
    refuse_cut(files, hint=_WHOLE.format(_STATE, _INFO))
    return files


def refuse_cut(files: Sequence[Path], *, hint: str) -> None:
    """Raise if a file of Arrow does not end with its mark.

    Where a file was cut behind a batch of rows, the library reads the rows before it without a
    word.

    Args:
        files: The files; one that is empty or missing is left to the library, which names it.
        hint: What to do about it.

    Raises:
        DataError: one is cut.
    """
    for file in files:
        with suppress(OSError), file.open("rb") as opened:
            if opened.seek(0, os.SEEK_END) < len(_MARK):
                continue
            opened.seek(-len(_MARK), os.SEEK_END)
            if opened.read() != _MARK:
                raise DataError("was cut: its end is missing", hint=hint, where=str(file))


def _listed(found: dict[str, Any], name: str, file: Path) -> list[Any]:
    """Return the list that a JSON object has under a name."""
    value = found.get(name)
    if not isinstance(value, list):
        raise DataError(f"has no list {name!r}", where=str(file))
    return value


def _damaged(files: list[Path]) -> Path | None:
    """Return the first .arrow file that Arrow cannot read, or None."""
    import pyarrow  # `datasets` has loaded it

    for file in files:
        try:
            with pyarrow.memory_map(str(file)) as mapped:
                pyarrow.ipc.open_stream(mapped).read_all()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            return file
    return None
