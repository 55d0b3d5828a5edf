"""Which files a run makes in its folder, and their removal; a user's own files there stay."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import disk
from finetune.errors import CheckpointError
from finetune.runs.checkpoint_folder import is_checkpoint_name
from finetune.runs.lock import LOCK, locked
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.runs.owner import ORIGIN, is_run, owns_place

if TYPE_CHECKING:
    from finetune.runs.folder import RunFolder

DOCUMENTS = ("config.yaml", "plan.json", "data.json")
"""Files that describe a run, written when it begins."""
TRACKED = "tracked.json"
"""By which id trackers of other programs know the run."""
PICTURES = "pictures.json"
"""Pictures of the validation samples, for the page about the run."""
RESULTS = ("metrics.jsonl", "summary.json", "freeze_proof.json", ORIGIN, TRACKED, PICTURES)
"""What a run writes besides its documents; `--fresh` removes these."""
EVENTS = re.compile(r"events\.out\.tfevents\..+")
"""Names of TensorBoard's event files."""
REPORT = "report.html"
"""The page about a run; a user's own file may bear this name, see `is_own_report`."""
REPORT_MARK = b"<!doctype html><!-- page of a run, made by finetune -->"
"""Beginning of each page that a run has written."""


def is_own_report(path: Path) -> bool:
    """Tell whether a file is a page that a run has written, by its first bytes."""
    try:
        with disk.open_to_read(path) as file:
            return file.read(len(REPORT_MARK)) == REPORT_MARK
    except OSError:
        return False


def clear(run: Path, checkpoints: Path, tensorboard: Path) -> None:
    """Remove results, checkpoints and curves of a run. Its documents and other files stay.

    Args:
        run: The run folder.
        checkpoints: Folder of its checkpoints.
        tensorboard: Folder of its event files.

    Raises:
        OSError: the system refuses.
    """
    for path in _entries(checkpoints):
        if is_checkpoint_name(path) and disk.holds_only(path, NAMES_OF_FILES):
            disk.remove(path)
    for path in _entries(tensorboard):
        if EVENTS.fullmatch(path.name) and disk.is_file(path):
            disk.remove(path)
    for name in RESULTS:
        disk.remove(run / name)
    if is_own_report(run / REPORT):
        disk.remove(run / REPORT)


def remove_run(folder: "RunFolder") -> bool:
    """Remove a run: all files that runs write. Return whether nothing was left in the folder.

    Checkpoints outside the folder are removed where the lock of their place names this run.

    Raises:
        CheckpointError: it is no run's folder, a process holds it, a name that runs use is taken
            by a link, a pipe or a device, or the system refuses.
    """
    if not is_run(folder.path):
        raise CheckpointError("holds no run", where=str(folder.path))
    folder.refuse_links()
    place = folder.elsewhere
    with _removing(folder.path):
        # Held, so that no process begins to train in what is being removed.
        with locked(folder.path):
            if place is not None and owns_place(place, folder.path):
                with locked(place, run=folder.path):
                    clear(folder.path, place, folder.tensorboard)
                disk.remove(place / LOCK)
                disk.remove_folder_if_empty(place)
            usual = folder.path / "checkpoints"
            clear(folder.path, usual, folder.tensorboard)
            for name in DOCUMENTS:
                disk.remove(folder.path / name)
            for emptied in (folder.tensorboard, usual):
                disk.remove_folder_if_empty(emptied)
        disk.remove(folder.path / LOCK)
        return disk.remove_folder_if_empty(folder.path)


@contextmanager
def _removing(run: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `CheckpointError` that names what stays."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or run)
        raise CheckpointError(f"cannot be removed: {disk.reason_of(error)}", where=where) from error


def _entries(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted by name; none if there is no folder."""
    return sorted(folder.iterdir()) if disk.is_folder(folder) else []
