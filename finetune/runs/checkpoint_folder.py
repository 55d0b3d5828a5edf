"""The folder of one checkpoint: its name, the position that it holds, and what is wrong with it."""

import os
import re
from pathlib import Path

from finetune import disk
from finetune.errors import CheckpointError
from finetune.reading import read_own_json
from finetune.runs.consistency import contradiction
from finetune.runs.manifest import find_fault, read_manifest
from finetune.runs.progress import Progress
from finetune.whole_folders import REMOVED, REPLACED, TEMPORARY

_NAME = re.compile(rf"({re.escape(REPLACED)})?step-(\d{{8,18}})")
_LEFTOVER = re.compile(
    rf"({'|'.join(map(re.escape, (TEMPORARY, REMOVED, REPLACED)))})step-\d{{8,18}}(-\d+)?"
)
"""Names of temporary folders that a killed save or removal leaves."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and modification time of a checkpoint and of each of its files."""


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name, or None if the name is not a checkpoint's."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else None


def is_leftover_name(path: Path) -> bool:
    """Tell whether a path has the name of what a killed save or removal leaves."""
    return _LEFTOVER.fullmatch(path.name) is not None


def is_checkpoint_name(path: Path) -> bool:
    """Tell whether a path has the name of a checkpoint, or of a leftover of a killed save."""
    return step_of(path) is not None or is_leftover_name(path)


def read_document(path: Path) -> dict[str, dict[str, object]]:
    """Return the contents of `progress.json`: progress, optimizer numbers, loss scale.

    Raises:
        CheckpointError: it is not what this release writes.
    """
    try:
        document = read_own_json(path / "progress.json")
    except (OSError, ValueError) as error:
        raise CheckpointError("progress.json cannot be read", where=str(path)) from error
    parts = ("progress", "optimizer", "scaler")
    if not isinstance(document, dict) or not all(
        isinstance(document.get(part), dict) for part in parts
    ):
        raise CheckpointError(f"progress.json lacks one of {parts}", where=str(path))
    return document


def _read_unjudged(path: Path) -> Progress:
    """Return the position that a checkpoint holds; only its types are checked."""
    return Progress.from_json(read_document(path)["progress"])


def read_progress(path: Path) -> Progress:
    """Return the position that a checkpoint holds, after checking that it can be true.

    Raises:
        CheckpointError: `progress.json` is not what this release writes.
    """
    progress = _read_unjudged(path)
    if (fault := contradiction(progress)) is not None:
        raise CheckpointError(f"progress.json: {fault}", where=str(path))
    return progress


def validated_at(path: Path) -> dict[str, float]:
    """Return the validation metrics that a checkpoint holds, by tag.

    Raises:
        CheckpointError: `progress.json` is not what this release writes.
    """
    metrics = read_progress(path).metrics
    return {tag: value for tag, value in metrics.items() if tag.startswith("validation/")}


def own_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint in itself, whatever the run; None if nothing."""
    if (fault := find_fault(path)) is not None:
        return fault
    try:
        progress, manifest = _read_unjudged(path), read_manifest(path)
    except CheckpointError as error:
        return error.message
    # Digests only show that files are as the manifest says; these must agree as well.
    if not progress.step == manifest.step == step_of(path):
        return f"holds step {progress.step}, and its manifest says {manifest.step}"
    if progress.phase != manifest.phase:
        return f"holds phase {progress.phase}, and its manifest says {manifest.phase}"
    fault = contradiction(progress)
    return None if fault is None else f"progress.json: {fault}"


def has_manifest(path: Path) -> bool:
    """Tell whether a folder has a readable manifest."""
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def signature_of(path: Path) -> Signature:
    """Return what changes whenever a file of a checkpoint is written; () if it cannot be read."""
    if not disk.is_folder(path):
        return ()
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        found = [("", path.lstat()), *((e.name, e.stat(follow_symlinks=False)) for e in entries)]
        return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found)
    except OSError:
        return ()
