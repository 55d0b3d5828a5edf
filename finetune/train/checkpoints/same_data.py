"""Compare the present data with the record of a run: refuse or report a difference."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from finetune.data.column_kinds import Kind
from finetune.data.identify.identity import DataIdentity
from finetune.data.opening import Record
from finetune.data.steps.learnt import read_learnt
from finetune.errors import CheckpointError
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints


def record_to_go_on(folder: RunFolder, *, accepts_changes: bool) -> tuple[Record | None, list[str]]:
    """Return the data record of the run to resume, and a line if it cannot be compared.

    Args:
        folder: The run's folder.
        accepts_changes: Whether the user accepts other data.
    """
    run = folder.origin or folder
    begins_anew = folder.is_fresh and folder.origin is None
    # Without a checkpoint no step was trained on the old data, so any data will do.
    if begins_anew or not Checkpoints(run.checkpoints, keep_last=1).all():
        return None, []
    hint = "--data-changed goes on with the data as it is now, --fresh begins anew"
    try:
        return read_record(run, accepts_changes=accepts_changes, trains=True, hint=hint), []
    except ValueError as error:
        return None, [f"goes on with data that cannot be compared: {error}"]


def lines_on_going_on(
    record: Record | None, changes: Sequence[str], now: DataIdentity
) -> list[str]:
    """Return a line for each change in the data of a resumed run.

    Args:
        record: The run's record of its data.
        changes: The differences.
        now: Identity of the present data.
    """
    lines = [f"goes on with changed data: {line}" for line in changes]
    if record is not None and now.num_unknown:
        rows = "1 row" if now.num_unknown == 1 else f"{now.num_unknown} rows"
        lines.append(f"goes on with {rows} of objects that cannot be compared")
    return lines


def read_record(run: RunFolder, *, accepts_changes: bool, trains: bool, hint: str) -> Record:
    """Read the record that a run keeps of its data.

    Args:
        run: Folder of the run.
        accepts_changes: Whether the user accepts other data.
        trains: Whether the data will be trained on.
        hint: The remedy for other data.

    Returns:
        The record. Opening data with it raises `CheckpointError` for changes that are not accepted.

    Raises:
        ValueError: there is no record, or it is damaged. The message says which.
        CheckpointError: what the fitted steps have kept is damaged.
    """

    # Called before the data is split: split anew, rows trained on might be tested.
    def accept(changes: Sequence[str]) -> None:
        if not accepts_changes:
            raise CheckpointError(
                f"the data is not that of the run: {'; '.join(changes)}",
                where=str(run.path),
                hint=hint,
            )

    path = run.path / "data.json"
    try:
        document: Any = run.read_json("data.json")
    except CheckpointError as error:
        raise ValueError(f"{path} is {error.message}") from error
    if not isinstance(document, dict) or "identity" not in document:
        raise ValueError(f"{path} holds no hashes of rows: an older version wrote it")
    try:
        identity = DataIdentity.read(
            document["identity"], document.get("classes"), _by_target(document)
        )
    except ValueError as error:
        raise ValueError(f"{path} holds hashes of rows that are damaged") from error
    try:
        fitted = read_learnt(document.get("fitted", []))
    except ValueError as error:
        # Not as without a record: steps fitted anew on data that may be other data would feed the
        # network other numbers than it was trained on.
        raise CheckpointError(
            f"does not hold what the fitted steps have kept: {str(error)[:200]}",
            where=str(path),
            hint="train the run anew with --fresh",
        ) from error
    return Record(identity, _kinds(document.get("kinds")), accept, trains, fitted)


def _by_target(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of the classes of each target of a list of tasks."""
    try:
        return {name: one["names"] for name, one in document.get("by_target", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("classes of targets that are none") from error


def _kinds(value: Any) -> dict[str, Kind]:
    """Return the kinds of columns in a document, without values that are not a kind."""
    known: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    return {
        str(name): known[kind]
        for name, kind in (value.items() if isinstance(value, dict) else ())
        if isinstance(kind, str) and kind in known
    }
