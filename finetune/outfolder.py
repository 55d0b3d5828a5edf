"""Write a folder of pictures beside a file that the user names."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune import disk
from finetune.disk import reason_of
from finetune.errors import FinetuneError
from finetune.outfile import is_regular
from finetune.whole_folders import placed

Put = Callable[[str, bytes], str]
"""Writes a picture of a sample, given its name; returns the picture's path from the file beside."""

_NAMES = re.compile(r"predicted_[0-9]{6,}(_[A-Za-z0-9._-]{1,80})?\.png")
"""Names of the pictures: the number of a row, and what of the sample's own name is plain. Numbers
alone would not tell them from the user's own: data sets often have `train_masks/000001.png`."""
_STRANGE = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_CHARACTERS = 80


def folder_beside(out: Path, what: str) -> Path | None:
    """Return the folder for the pictures beside a file; None if the file is a pipe or device.

    Args:
        out: The file.
        what: What the pictures show, as one word: `predictions.jsonl` has `predictions_masks`.
    """
    return out.with_name(f"{out.stem}_{what}s") if is_regular(out) else None


@contextmanager
def pictures_in(folder: Path, read: Iterable[Path]) -> Iterator[Put]:
    """Fill a folder with pictures, which are there when the block ends well, or not at all.

    A folder of that name is replaced only if it holds nothing but such pictures.

    Args:
        folder: The folder.
        read: Files that are read meanwhile; none may lie in the folder.

    Raises:
        FinetuneError: the folder holds something else or a file that is read, or cannot be written.
    """
    _refuse_read_files(folder, read)
    count = 0
    try:
        with placed(folder, _NAMES) as aside:

            def put(name: str, picture: bytes) -> str:
                nonlocal count
                count += 1
                own = _STRANGE.sub("-", Path(name).stem).strip("-.")[:_MOST_CHARACTERS]
                file = f"predicted_{count:06}{f'_{own}' if own else ''}.png"
                disk.write_new(aside / file, picture)
                return f"{folder.name}/{file}"

            yield put
    except OSError as error:
        raise FinetuneError(
            f"cannot be written: {reason_of(error)}",
            where=str(folder),
            hint="the pictures of predictions go there: remove it, or name another file by --out",
        ) from error


def _refuse_read_files(folder: Path, read: Iterable[Path]) -> None:
    """Raise `FinetuneError` if a file that is read lies in a folder that is replaced."""
    for file in read:
        with suppress(OSError):
            if folder.is_dir() and file.resolve().is_relative_to(folder.resolve()):
                raise FinetuneError(
                    f"would replace {str(file)!r}, a file that this command reads",
                    where=str(folder),
                    hint="name another file to write to by --out",
                )
