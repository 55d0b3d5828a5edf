"""Which files a run makes in its folder, and how they are cleared; a user's own files stay."""

import re
from pathlib import Path

from finetune import disk
from finetune.runs.checkpoint_folder import is_checkpoint_name
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.runs.owner import ORIGIN
from finetune.tracking.projector_files import PROJECTOR_FILES, has_own_projector
from finetune.whole_folders import holds_only

DOCUMENTS = ("config.yaml", "plan.json", "data.json")
"""Files that describe a run, written when it begins."""
TRACKED = "tracked.json"
"""By which id trackers of other programs know the run."""
PICTURES = "pictures.json"
"""Pictures of the validation samples, for the page about the run."""
RESULTS = ("metrics.jsonl", "summary.json", "freeze_proof.json", ORIGIN, TRACKED, PICTURES)
"""What a run writes besides its documents; `--fresh` removes these."""
_EVENT_FILE = re.compile(r"events\.out\.tfevents\..+")
"""Names of TensorBoard's event files."""
REPORT = "report.html"
"""The page about a run; a user's own file may bear this name, see `is_own_report`."""
REPORT_MARK = b"<!doctype html><!-- page of a run, made by finetune -->"
"""Beginning of each page that a run has written."""


def is_own_report(path: Path) -> bool:
    """Tell whether a file is a page that a run has written, by its first bytes."""
    return disk.begins_with(path, REPORT_MARK)


def tensorboard_files(folder: Path) -> list[Path]:
    """Return what runs write for TensorBoard into a folder: event files, files of the projector.

    The latter only if a run has made them.
    """
    # By name, the file that shows whose they are comes last: it must be removed last.
    own = PROJECTOR_FILES if has_own_projector(folder) else ()
    return [
        path for path in _entries(folder) if _EVENT_FILE.fullmatch(path.name) or path.name in own
    ]


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
        if is_checkpoint_name(path) and holds_only(path, NAMES_OF_FILES):
            disk.remove(path)
    for path in tensorboard_files(tensorboard):
        if disk.is_file(path):
            disk.remove(path)
    for name in RESULTS:
        disk.remove(run / name)
    if is_own_report(run / REPORT):
        disk.remove(run / REPORT)


def _entries(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted by name; none if there is no folder."""
    return sorted(folder.iterdir()) if disk.is_folder(folder) else []
