"""Errors for texts that should name images: missing files, no ending, not an image."""

from collections.abc import Sequence
from pathlib import Path

from finetune.data.media.file_endings import IMAGE_ENDINGS
from finetune.data.samples import Prepared
from finetune.data.table import Listed, Table
from finetune.errors import DataError, Key

_ENDING = 6
"""Most characters of a file's ending, with its dot."""


def no_such_image(name: str, column: Prepared, table: Table, key: Key) -> DataError | None:
    """Return the error for a text column that seems meant as images; None for other columns.

    Args:
        name: Name of the column.
        column: The column, where numbers are needed.
        table: Table it comes from; names are relative to the table's folder.
        key: Position of the config key at fault.
    """
    if table.folder is None or not isinstance(column, Listed) or column.kind == "things":
        return None
    texts = [str(text) for text in column.values]
    folder = str(table.folder.resolve())
    told = f"column {name!r} holds {texts[0]!r} in {table.place(0)}" if texts else ""
    if texts and all(text.lower().endswith(tuple(IMAGE_ENDINGS)) for text in texts):
        lacking = next((r for r, t in enumerate(texts) if not Path(table.folder, t).is_file()), 0)
        return DataError(
            f"no such image file {texts[lacking]!r}, which column {name!r} names in "
            f"{table.place(lacking)}",
            hint=f"names are relative to the folder {folder!r}",
            key=key,
        )
    # The first text alone: every ending is tried, each by a look at the disk.
    if (whole := _with_ending(texts[:1], table.folder)) is not None:
        message = f"{told}, which is no file; {whole!r} is one"
        return DataError(message, hint="name image files with their endings", key=key)
    if (
        texts
        and 1 < len(Path(texts[0]).suffix) < _ENDING
        and Path(table.folder, texts[0]).is_file()
    ):
        known = ", ".join(sorted(IMAGE_ENDINGS))
        return DataError(
            f"{told}, a file that is not read as an image", hint=f"read are {known}", key=key
        )
    return None


def _with_ending(texts: Sequence[str], folder: Path) -> str | None:
    """Return a name plus the ending of an image file that exists, or None."""
    endings = sorted(IMAGE_ENDINGS)
    # A longer text is no name, and most file systems would raise an error for it.
    named = (f"{text}{ending}" for text in texts if len(text) < 200 for ending in endings)
    return next((name for name in named if Path(folder, name).is_file()), None)
