"""Whose a folder is: a run's, the place of a run's checkpoints, or somebody else's.

A lock says it: one that names a run lies where only that run's checkpoints are.
"""

from pathlib import Path
from typing import Any

from finetune import disk
from finetune.errors import CheckpointError
from finetune.reading import read_own_json
from finetune.runs.kept import is_checkpoint_name
from finetune.runs.lock import LOCK, read_holder

ORIGIN = "origin.json"
"""Names the run that this one began from, where it began from another one."""
_OF_ITS_OWN = "let train.checkpoint.path name a folder of this run's own"


def is_run(folder: Path) -> bool:
    """Tell whether a run was here: by its lock, or by its documents where that is gone.

    `cp run/* elsewhere` leaves the lock behind.
    """
    holder = read_holder(folder)
    if holder is not None:
        return not holder.run
    return origin_of(folder) is not None or _has_documents(folder)


def origin_of(folder: Path) -> str | None:
    """Return the folder of the run that this one began from, where it began from one."""
    found = _json(folder / ORIGIN)
    run = found.get("run") if isinstance(found, dict) else None
    return run if isinstance(run, str) else None


def refuse_foreign_place(place: Path, run: Path) -> None:
    """Raise where a run may not keep its checkpoints in a folder outside its own.

    The folder is empty, or its lock names the run. Without a lock it may hold what the run's
    owner has moved there: checkpoints alone, of a run that has begun, outside any run's folder.

    Args:
        place: The folder that `train.checkpoint.path` names; it need not be there.
        run: The run folder.

    Raises:
        CheckpointError: it is the run folder, lies around or in it, holds other things, or is
            another run's.
    """
    # resolved, for a name that leads through a folder which is not there yet finds nothing
    here, home = place.resolve(), run.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        raise _refused("is the run folder itself, or lies in or around it", place)
    entries = [path for path in here.iterdir() if path.name != LOCK] if here.is_dir() else []
    foreign = [path.name for path in sorted(entries) if not is_checkpoint_name(path)]
    if foreign:
        raise _refused(f"holds {foreign[0]!r}, which is no checkpoint", place)
    if is_run(here) or (entries and is_run(here.parent)):
        raise _refused("is the folder of another run", place)
    owner = _owner(here)
    if owner == home:
        return
    if owner is not None and disk.is_folder(owner):
        raise _refused(f"holds the checkpoints of {owner}", place)
    if entries and not disk.is_file(run / "config.yaml"):
        raise _refused("holds checkpoints, and this run has made none", place)


def _owner(place: Path) -> Path | None:
    holder = read_holder(place)
    return Path(holder.run).resolve() if holder is not None and holder.run else None


def _has_documents(folder: Path) -> bool:
    plan, data = _json(folder / "plan.json"), _json(folder / "data.json")
    is_plan = isinstance(plan, dict) and plan.keys() >= {"ever_trained", "phases"}
    is_data = isinstance(data, dict) and data.keys() >= {"inputs", "specs", "classes"}
    return is_plan and is_data and disk.is_file(folder / "config.yaml")


def _json(path: Path) -> Any:
    """Return what a JSON file of ours holds; None where there is none, or a damaged one."""
    try:
        return read_own_json(path)
    except (OSError, ValueError):
        return None


def _refused(what: str, place: Path) -> CheckpointError:
    return CheckpointError(what, where=str(place), hint=_OF_ITS_OWN)
