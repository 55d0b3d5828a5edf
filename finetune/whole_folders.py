"""Folders of ours that appear, are replaced and vanish as a whole, such as checkpoints.

Whoever looks at such a folder finds all of its files or none, also after a kill. A folder of the
right name that holds anything else belongs to somebody else, and is never replaced or removed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.disk import NotOursError, is_folder, kind_of, refuse_unless_folder, remove, sync

TEMPORARY, REPLACED, REMOVED = ".tmp-", ".old-", ".gone-"
"""Beginnings of the names of folders that are being written, replaced and removed."""


def holds_only(folder: Path, names: re.Pattern[str]) -> bool:
    """Tell whether a folder holds only non-folders whose whole names match `names`.

    Only such a folder may be removed without asking: one with the right name but a foreign file in
    it belongs to somebody else. A link with a name of ours counts as ours, since removing it does
    not touch its target.
    """
    return is_folder(folder) and _first_foreign(folder, names) is None


@contextmanager
def placed(final: Path, names: re.Pattern[str]) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends, put it durably in place of `final`.

    A folder of that name is moved aside just before and removed after, so that at any moment one
    of the two is there: `final`, or its name with `REPLACED` before it.

    Args:
        final: The folder to make or replace.
        names: Matches the names of all files that it may hold; see `holds_only`.

    Raises:
        NotOursError: `final` is a link or a file, or one of the folders to replace is not ours.
        OSError: the system refuses; what `final` held is still there.
    """
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    replaced = final.with_name(f"{REPLACED}{final.name}")
    for path in (final, temporary, replaced):
        refuse_foreign(path, names)
    # Left by a process that was killed while it filled it.
    remove(temporary)
    if is_folder(final):
        # Only if `final` is there: after a kill between the two renames `replaced` is the only
        # whole copy.
        remove(replaced)
    temporary.mkdir()
    try:
        yield temporary
        # The order counts: contents on the disk, then the names, then the folder that holds the
        # names.
        sync(temporary)
        _swap(temporary, final, replaced)
        sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def refuse_foreign(path: Path, names: re.Pattern[str]) -> None:
    """Raise if a name is taken by anything but a folder that finetune made, see `holds_only`.

    Raises:
        NotOursError: a link or a file bears the name, or the folder holds something else.
    """
    refuse_unless_folder(path)
    foreign = _first_foreign(path, names) if is_folder(path) else None
    if foreign is not None:
        raise NotOursError(path, f"holds {foreign!r}, which finetune has not made")


def remove_at_once(path: Path, names: re.Pattern[str]) -> None:
    """Remove a folder that finetune made; others see it whole or not at all.

    It is renamed first and then deleted: no reader finds a folder with half of its files.

    Raises:
        NotOursError: it holds something else.
        OSError: the system refuses.
    """
    aside = path.with_name(f"{REMOVED}{path.name}")
    for each in (path, aside):
        refuse_foreign(each, names)
    remove(aside)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _first_foreign(folder: Path, names: re.Pattern[str]) -> str | None:
    """Return the name of something in a folder that `names` does not match; None if all match."""
    with os.scandir(folder) as entries:
        return next(
            (
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) or not names.fullmatch(entry.name)
            ),
            None,
        )


def _swap(temporary: Path, final: Path, replaced: Path) -> None:
    """Rename `final` to `replaced`, then `temporary` to `final`; on failure undo the first."""
    # `rename` refuses a folder with contents as its target, so two renames are needed.
    if is_folder(final):
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if kind_of(replaced) is not None:
            replaced.rename(final)
        raise
