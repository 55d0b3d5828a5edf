"""Write what TensorBoard's projector reads: rows of numbers, a table about them, small images.

They lie beside the event files, and a later call replaces them.
"""

from pathlib import Path

from finetune import disk
from finetune.errors import FinetuneError
from finetune.pictures.drawing import as_png
from finetune.pictures.sprite import SIDE, sprite_of
from finetune.tracking.projector_files import (
    PROJECTOR_CONFIG,
    PROJECTOR_IMAGES,
    PROJECTOR_MARK,
    PROJECTOR_ROWS,
    PROJECTOR_TABLE,
    foreign_projector_file,
)
from finetune.tracking.tracker import Embedding
from finetune.visible import one_line


def write_projector(folder: Path, embedding: Embedding, step: int) -> None:
    """Write an embedding into a folder of event files.

    Raises:
        FinetuneError: a file of that name was not written by a run.
        OSError: the system refuses.
    """
    if (foreign := foreign_projector_file(folder)) is not None:
        raise FinetuneError(
            "was not made by finetune, so it stays as it is",
            where=str(foreign),
            hint="move it elsewhere",
        )
    # First: if the process is killed before the last line, the files are still known as ours.
    _write(folder / PROJECTOR_CONFIG, PROJECTOR_MARK)
    lines = ("\t".join(f"{value:.5g}" for value in row) for row in embedding.rows.tolist())
    _write(folder / PROJECTOR_ROWS, "".join(f"{line}\n" for line in lines))
    _write(folder / PROJECTOR_TABLE, _table(embedding))
    # The text form of a protocol buffer: within quotes, backslashes and quotes are escaped.
    # A hidden character is shown as its escape.
    name = one_line(f"{embedding.layer} (step {step})").replace("\\", r"\\").replace('"', r"\"")
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
    shown = "embeddings {\n  " + "\n  ".join(entry) + "\n}\n"
    _write(folder / PROJECTOR_CONFIG, PROJECTOR_MARK + shown)


def _table(embedding: Embedding) -> str:
    """Return the columns as TSV; a single column has no header there."""
    rows = [*zip(*embedding.columns.values(), strict=True)]
    rows = rows if len(embedding.columns) == 1 else [tuple(embedding.columns), *rows]
    cells = ("\t".join(one_line(cell).replace("\t", " ") or "-" for cell in row) for row in rows)
    return "".join(f"{line}\n" for line in cells)


def _write(path: Path, text: str) -> None:
    disk.replace_file(path, text.encode("utf-8", "replace"))
