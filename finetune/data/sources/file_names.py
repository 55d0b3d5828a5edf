"""Turn names of files in the data into paths, which must not leave a folder.

Only here does a name become something that can be opened: whatever decodes a file takes no names.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from finetune.data.media.decoding import is_image
from finetune.data.short_values import in_short
from finetune.data.table import Table
from finetune.errors import DataError
from finetune.reading import first_outside

What = Literal["image", "recording"]
"""What the files are, for messages."""
_FILE = {"image": "image file", "recording": "recording"}
_SCHEME = re.compile(r"(?:^|/)([a-z][a-z0-9]{1,9}):/")
"""Matches the beginning of an address, as a path has it: with one slash of its two."""
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")
"""Matches what a column of numbers holds."""
_MOST_BESIDE = 10_000
"""Most entries of a folder that are compared with a name."""
_WITH_ARTICLE = {"image": "an image", "recording": "a recording"}


class _Files(Protocol):
    """A column of images or recordings."""

    @property
    def items(self) -> Sequence[Any]:
        """The different files, encoded bytes or images of the column."""

    @property
    def order(self) -> Sequence[int]:
        """Position in `items` of each sample."""


def named_files(items: Sequence[Any], folder: Path, what: What = "image") -> list[Any]:
    """Return items with each file name replaced by its path, relative to `folder`.

    A name is a text, or `{"bytes", "path"}` without bytes.

    Raises:
        DataError: an item is neither what it should be nor a name.
    """
    return [_named_file(item, folder, what) for item in items]


def files_of_table(
    column: str, items: Sequence[Any], table: Table, what: What = "image"
) -> list[Any]:
    """Return the items of a table's column, with names as paths inside the data's folder.

    Raises:
        DataError: a name leads out of the folder, or an item is no file.
    """
    folder = table.folder or Path()
    try:
        files = named_files(items, folder, what)
    except DataError as error:
        error.message = f"column {column!r} of {table.name}: {error.message}"
        raise
    within = table.within or folder
    # Checked as a whole before anything is opened: a single name may lead out of the folder.
    if (row := first_leaving(files, within)) is not None:
        raise leaves(table.place(row), items[row], folder, within)
    return files


def first_leaving(items: Sequence[Any], within: Path) -> int | None:
    """Return the position of the first path among items that is outside `within`, or None."""
    paths = [(position, item) for position, item in enumerate(items) if isinstance(item, Path)]
    outside = first_outside([path for _, path in paths], within)
    return None if outside is None else paths[outside][0]


def leaves(where: str, item: Any, folder: Path, within: Path) -> DataError:
    """Return the error for a name, or a `{"bytes", "path"}`, that leads out of a folder.

    Args:
        where: Place of the name, for messages.
        item: The name.
        folder: Folder that names are relative to.
        within: Folder that names must not leave.
    """
    name = str(item["path"] if isinstance(item, dict) else item)
    hint = "name a folder that holds all files: within: DIR, beside the path of the source"
    # A frequent misunderstanding: `within` sets a bound, and is not where names start.
    if folder != within and (within / name).exists():
        written = os.path.relpath(within / name, folder)
        return DataError(
            f"{where} names {name!r}, which is looked for in the folder {str(folder)!r}, and lies "
            f"in {str(within)!r}",
            hint=f"within only bounds where files may lie: write {written!r}, the path from the "
            "folder of the table",
        )
    return DataError(
        f"{where} names {name!r}, which leaves the folder {str(within)!r}: it is "
        f"{str(folder / name)!r}",
        hint=hint,
    )


def missing_file(
    files: _Files, place: Callable[[int], str], folder: Path, what: What = "image"
) -> DataError | None:
    """Return the error for the first file that does not exist, or None if all do.

    Args:
        files: The column.
        place: Returns the place of a sample, for messages.
        folder: Folder that file names are relative to.
        what: What the files are.
    """
    for index, position in enumerate(files.order):
        item = files.items[position]
        if not isinstance(item, Path) or item.is_file():
            continue
        if not item.exists():
            return not_there(item, folder, what, f", which {place(index)} names")
        if item.is_dir():
            is_empty = item == folder
            told = "names no file: its cell is empty" if is_empty else f"names the folder {item!s}"
            return DataError(
                f"{place(index)} {told}, where {_WITH_ARTICLE[what]} is needed",
                hint="name a file, or leave such rows out",
            )
    return None


def not_there(
    path: Path, folder: Path, what: What, named_by: str = "", where: str | None = None
) -> DataError:
    """Return the error for a file that does not exist.

    Args:
        path: The file.
        folder: Folder that its name is relative to.
        what: What it is.
        named_by: What names it, as the end of the sentence.
        where: Place of the name, if the message does not say it.
    """
    return DataError(
        f"no such {_FILE[what]} {str(path)!r}{named_by}",
        hint=f"{_meant(path, folder)}names are relative to the folder {str(folder.resolve())!r}",
        where=where,
    )


def _meant(path: Path, folder: Path) -> str:
    """Return the beginning of a hint on the file that a name seems to mean, or none."""
    name = os.path.relpath(path, folder) if path.is_absolute() else str(path)
    if _NUMBER.fullmatch(name):
        return "a column of numbers is brought to one scale by standardize; as files, "
    scheme = _SCHEME.search(str(path))
    if scheme is not None and scheme[1] != "file":
        return "nothing is fetched from the web: download the files first; "
    if scheme is not None:
        return "write paths without file://; "
    # A hint must not fail: a name may be too long for the system, or hold a zero byte.
    with suppress(OSError, ValueError):
        for changed in (name.replace("\\", "/"), name.strip()):
            if changed != name and (folder / changed).is_file():
                return f"{changed!r} is there, without backslashes and outer blanks; "
        beside = [one for one in islice(path.parent.iterdir(), _MOST_BESIDE) if one.is_file()]
        like = [one for one in beside if path.name.casefold() in _forms(one)]
        if like:
            return f"{like[0].name!r} is there; "
        below = [one for one in islice(folder.iterdir(), _MOST_BESIDE) if one.is_dir()]
        inside = [one for one in below if (one / path.relative_to(folder)).is_file()]
        if inside:
            return f"it lies in {inside[0].name!r}: folder: {inside[0].name}, beside the path; "
    return ""


def _forms(file: Path) -> tuple[str, str]:
    """Return the name of a file with and without its ending, for comparison."""
    return file.name.casefold(), file.stem.casefold()


def _named_file(item: Any, folder: Path, what: What) -> Any:
    """Return one item, with a name replaced by its path."""
    # `datasets` keeps a file as bytes, or as nothing but a path; only the former is whole.
    is_dict = isinstance(item, dict) and item.keys() == {"bytes", "path"}
    if isinstance(item, bytes) or (is_dict and isinstance(item["bytes"], bytes)):
        return item
    if what == "image" and not is_dict and is_image(item):
        return item
    name = item["path"] if is_dict and item["bytes"] is None else item
    if isinstance(name, str | Path):
        # An absolute name drops the folder: whoever reads a stranger's names checks the paths.
        return folder / name
    raise DataError(f"needs {_WITH_ARTICLE[what]} or the path of one, got {in_short(item)}")
