"""Decide whose a folder is: a run's, a place for a run's checkpoints, or somebody else's.

The lock file decides: one that names a run marks a place where only that run keeps checkpoints.
"""

from pathlib import Path
from typing import Any

from finetune import disk
from finetune.errors import CheckpointError
from finetune.reading import read_own_json
from finetune.runs.checkpoint_folder import is_checkpoint_name
from finetune.runs.lock import LOCK, read_holder

ORIGIN = "origin.json"
"""File that names the run which this one continues, if it began from another run's folder."""
_OF_ITS_OWN = "let train.checkpoint.path name a folder of this run's own"


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run's: by its lock file, or by its documents without one.

    `cp run/* elsewhere` copies no hidden files, so the lock file may be missing.
    """
    holder = read_holder(folder)
    if holder is not None:
        return not holder.run
    return origin_of(folder) is not None or _has_documents(folder)


def origin_of(folder: Path) -> str | None:
    """Return the run folder that this run was continued from, or None."""
    found = _json(folder / ORIGIN)
    run = found.get("run") if isinstance(found, dict) else None
    return run if isinstance(run, str) else None


def refuse_foreign_place(place: Path, run: Path) -> None:
    """Raise if a run may not keep its checkpoints in a folder outside its own.

    Allowed are an empty folder and one whose lock names the run. Without a lock, the user may have
    moved checkpoints there: allowed if there is nothing else, the run exists, and it is no run's
    folder.

    Args:
        place: The folder that `train.checkpoint.path` names; it need not exist.
        run: The run folder.

    Raises:
        CheckpointError: it is, contains or lies in the run folder, holds other things, or belongs
            to another run.
    """
    # resolved: a path that passes through a missing folder and back by `..` would not be found
    here, home = place.resolve(), run.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        raise _refused("is the run folder itself, or lies in or around it", place)
    entries = [path for path in here.iterdir() if path.name != LOCK] if here.is_dir() else []
    foreign = [path.name for path in sorted(entries) if not is_checkpoint_name(path)]
    if foreign:
        raise _refused(f"holds {foreign[0]!r}, which is no checkpoint", place)
    # `checkpoints/` of another run has no lock of its own; the run's is in the folder above.
    if is_run(here) or (entries and is_run(here.parent)):
        raise _refused("is the folder of another run", place)
    owner = _owner(here)
    if owner == home:
        return
    # A run that was removed or moved leaves its lock behind; its checkpoints may be taken over.
    if owner is not None and disk.is_folder(owner):
        raise _refused(f"holds the checkpoints of {owner}", place)
    if entries and not disk.is_file(run / "config.yaml"):
        raise _refused("holds checkpoints, and this run has made none", place)


def owns_place(place: Path, run: Path) -> bool:
    """Tell whether the lock of a folder elsewhere says that this run keeps checkpoints there."""
    return _owner(place.resolve()) == run.resolve()


def _owner(place: Path) -> Path | None:
    """Return the run folder that the lock of a place names, or None."""
    holder = read_holder(place)
    return Path(holder.run).resolve() if holder is not None and holder.run else None


def _has_documents(folder: Path) -> bool:
    """Tell whether a folder holds the three documents that a run writes."""
    plan, data = _json(folder / "plan.json"), _json(folder / "data.json")
    is_plan = isinstance(plan, dict) and plan.keys() >= {"ever_trained", "phases"}
    is_data = isinstance(data, dict) and data.keys() >= {"inputs", "specs", "classes"}
    return is_plan and is_data and disk.is_file(folder / "config.yaml")


def _json(path: Path) -> Any:
    """Return the contents of a JSON file, or None if it is missing or damaged."""
    try:
        return read_own_json(path)
    except (OSError, ValueError):
        return None


def _refused(what: str, place: Path) -> CheckpointError:
    return CheckpointError(what, where=str(place), hint=_OF_ITS_OWN)
