"""Make a folder that is there when it is whole, or not at all; nothing is ever replaced."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune import disk
from finetune.disk import reason_of
from finetune.errors import FinetuneError
from finetune.whole_folders import TEMPORARY

_TAKEN = "is there already"
_HINT = "remove it, or name another folder: an export replaces nothing"


def refuse_taken(folder: Path) -> None:
    """Raise unless a folder of this name can be made: the name is free, its parent is there.

    A link that leads nowhere takes the name, too.

    Raises:
        FinetuneError: the name is taken, or there is no folder to make it in.
    """
    if disk.kind_of(folder) is not None:
        raise FinetuneError(_TAKEN, where=str(folder), hint=_HINT)
    if not folder.parent.is_dir():
        raise FinetuneError(
            f"cannot be written: there is no folder {str(folder.parent)!r}",
            where=str(folder),
            hint="make the folder first",
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends, give it its name.

    If the block fails, all that it wrote is removed. Files of it are made by libraries that know
    nothing of links, so it is made new, under a name that cannot be guessed.

    Raises:
        FinetuneError: the name is taken, or the folder cannot be written.
    """
    refuse_taken(folder)
    aside = folder.with_name(f"{TEMPORARY}{folder.name}-{secrets.token_hex(8)}")
    try:
        aside.mkdir()
        try:
            yield aside
            for path in sorted(aside.rglob("*")):
                # Some libraries make files that their owner alone may read.
                path.chmod(0o755 if path.is_dir() else 0o644)
                disk.sync(path)
            # Again, since a check may take minutes: to rename would replace an empty folder.
            refuse_taken(folder)
            os.rename(aside, folder)  # noqa: PTH104 - no `replace`: a file of that name must stay
            disk.sync(folder.parent)
        finally:
            if disk.is_folder(aside):
                disk.remove(aside)
    except OSError as error:
        message = f"cannot be written: {reason_of(error)}"
        raise FinetuneError(message, where=str(folder)) from error
