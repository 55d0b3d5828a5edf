"""The files that TensorBoard's projector reads: their names, and whether finetune has made them.

They lie beside the event files of a run. TensorBoard chose the name of the first one it reads, so
a user's own file may bear it.
"""

from pathlib import Path

from finetune import disk

PROJECTOR_ROWS, PROJECTOR_TABLE = "embedding.tsv", "embedding_labels.tsv"
PROJECTOR_IMAGES = "embedding_images.png"
PROJECTOR_CONFIG = "projector_config.pbtxt"
"""What TensorBoard reads first; it names the others."""
PROJECTOR_FILES = (PROJECTOR_ROWS, PROJECTOR_TABLE, PROJECTOR_IMAGES, PROJECTOR_CONFIG)
"""All of them: `finetune tensorboard` copies these, `--fresh` and `runs --rm` remove them."""
PROJECTOR_MARK = "# made by finetune\n"
"""First line of each `PROJECTOR_CONFIG` that a run writes: a comment."""


def has_own_projector(folder: Path) -> bool:
    """Tell whether a run has written the projector's files of a folder, by its first line."""
    return disk.begins_with(folder / PROJECTOR_CONFIG, PROJECTOR_MARK.encode())


def foreign_projector_file(folder: Path) -> Path | None:
    """Return a file that bears a name of the projector and that no run has written, if any."""
    if has_own_projector(folder):
        return None
    paths = (folder / name for name in PROJECTOR_FILES)
    return next((path for path in paths if disk.kind_of(path) is not None), None)
