"""The files that TensorBoard's projector reads: rows of numbers, a table about them, small images.

They lie beside the event files, and a later call replaces them.
"""

from pathlib import Path

from finetune import disk
from finetune.pictures.drawing import as_png
from finetune.pictures.sprite import SIDE, sprite_of
from finetune.tracking.tracker import Embedding
from finetune.visible import one_line

PROJECTOR_CONFIG = "projector_config.pbtxt"
"""What TensorBoard reads first; the name is its own."""
PROJECTOR_ROWS, PROJECTOR_TABLE = "embedding.tsv", "embedding_labels.tsv"
PROJECTOR_IMAGES = "embedding_images.png"
"""A new name must be known to `runs/own_files.py`, which removes and copies files of runs."""


def write_projector(folder: Path, embedding: Embedding, step: int) -> None:
    """Write an embedding into a folder of event files.

    Raises:
        OSError: the system refuses.
    """
    lines = ("\t".join(f"{value:.5g}" for value in row) for row in embedding.rows.tolist())
    _write(folder / PROJECTOR_ROWS, "".join(f"{line}\n" for line in lines))
    _write(folder / PROJECTOR_TABLE, _table(embedding))
    # Hidden characters and quotes become escapes: the file is read as a protocol buffer.
    name = one_line(f"{embedding.layer} (step {step})").replace("\\", "/").replace('"', "'")
    entry = [
        f'tensor_name: "{name}"',
        f'tensor_path: "{PROJECTOR_ROWS}"',
        f'metadata_path: "{PROJECTOR_TABLE}"',
    ]
    if embedding.images:
        disk.replace_file(
            folder / PROJECTOR_IMAGES, as_png(sprite_of(embedding.images), compress_level=3)
        )
        dims = f"single_image_dim: {SIDE} single_image_dim: {SIDE}"
        entry.append(f'sprite {{ image_path: "{PROJECTOR_IMAGES}" {dims} }}')
    # Last: it names the others.
    _write(folder / PROJECTOR_CONFIG, "embeddings {\n  " + "\n  ".join(entry) + "\n}\n")


def _table(embedding: Embedding) -> str:
    """Return the columns as TSV; a single column has no header there."""
    rows = [*zip(*embedding.columns.values(), strict=True)]
    rows = rows if len(embedding.columns) == 1 else [tuple(embedding.columns), *rows]
    cells = ("\t".join(one_line(cell).replace("\t", " ") or "-" for cell in row) for row in rows)
    return "".join(f"{line}\n" for line in cells)


def _write(path: Path, text: str) -> None:
    disk.replace_file(path, text.encode("utf-8", "replace"))
