"""Remove a run: all files that runs write, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune import disk
from finetune.errors import CheckpointError
from finetune.runs.folder import RunFolder
from finetune.runs.lock import LOCK, locked
from finetune.runs.own_files import DOCUMENTS, clear
from finetune.runs.owner import is_run, owns_place


def remove_run(folder: RunFolder) -> bool:
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
