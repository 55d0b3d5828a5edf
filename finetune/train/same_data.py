"""Compare the data of a resumed run with that of its start; refuse or accept the differences."""

from typing import Any

from finetune.data.identity import DataIdentity, differences
from finetune.errors import CheckpointError
from finetune.train.folder import RunFolder
from finetune.train.kept import Checkpoints


def compare_data(folder: RunFolder, now: DataIdentity, *, accepts_changes: bool) -> list[str]:
    """Compare the data at hand with that of the run which goes on; return a line for each change.

    Args:
        folder: The run's folder.
        now: The data at hand.
        accepts_changes: Whether the user wants to go on with other data.

    Raises:
        CheckpointError: the data differs, and no change was asked for.
    """
    run = folder.origin or folder
    begins_anew = folder.is_fresh and folder.origin is None
    if begins_anew or not Checkpoints(run.checkpoints, keep_last=1).all():
        return []
    try:
        there = _identity(run)
    except ValueError as error:
        return [f"goes on with data that cannot be compared: {run.path / 'data.json'} {error}"]
    changes = differences(there, now)
    if changes and not accepts_changes:
        raise CheckpointError(
            f"the data is not that of the run: {'; '.join(changes)}",
            where=str(run.path),
            hint="--data-changed goes on with the data as it is now, --fresh begins anew",
        )
    lines = [f"goes on with changed data: {line}" for line in changes]
    if now.num_unknown:
        rows = "1 row" if now.num_unknown == 1 else f"{now.num_unknown} rows"
        lines.append(f"goes on with {rows} of objects that cannot be compared")
    return lines


def _identity(run: RunFolder) -> DataIdentity:
    """Return the data that a run has kept a record of.

    Raises:
        ValueError: there is none, or it is damaged. The message says which.
    """
    try:
        document: Any = run.read_json("data.json")
    except CheckpointError as error:
        raise ValueError(f"is {error.message}") from error
    if not isinstance(document, dict) or "identity" not in document:
        raise ValueError("holds no hashes of rows: an older version wrote it")
    try:
        return DataIdentity.read(document["identity"], document.get("classes"))
    except ValueError as error:
        raise ValueError("holds hashes of rows that are damaged") from error
