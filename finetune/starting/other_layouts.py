"""Recognise data in the form of other tools, for which no config can be proposed, and say so."""

import re
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import DataError

_LOOKED_AT = 1 << 16
"""Bytes of a file that are looked at, at each end."""
_MASK_FOLDERS = frozenset(
    {"mask", "masks", "annotation", "annotations", "labels", "gt", "segmentation", "segmentations"}
)
_YOLO_LINE = re.compile(r"\d+( -?\d+(\.\d+)?){4,}")
_TEMPLATE = "finetune init --template detection writes a config for a file of COCO, to fill in"


def refuse_boxes(path: Path, files: Sequence[Path]) -> None:
    """Raise `DataError` if a folder holds boxes as YOLO or COCO has them.

    Args:
        path: The folder.
        files: All files below it.
    """
    for file in files:
        if file.suffix.lower() == ".json":
            refuse_coco(file)
        if file.suffix.lower() == ".txt" and "labels" in file.relative_to(path).parts[:-1]:
            first = _beginning(file).decode("utf-8", "replace").partition("\n")[0].strip()
            if _YOLO_LINE.fullmatch(first):
                raise DataError(
                    f"holds boxes as YOLO writes them, such as {str(file.relative_to(path))!r}, "
                    "which no source reads",
                    where=str(path),
                    hint=f"convert them to COCO; {_TEMPLATE}",
                )


def refuse_masks(path: Path, files: Sequence[Path]) -> None:
    """Raise `DataError` if one of two folders holds masks of the images in the other one."""
    stems: dict[str, set[str]] = {}
    for file in files:
        stems.setdefault(file.relative_to(path).parts[0], set()).add(file.stem)
    masks = next((name for name in stems if name.lower() in _MASK_FOLDERS), None)
    if masks is None or len(stems) != 2:
        return
    other = next(name for name in stems if name != masks)
    if stems[masks] & stems[other]:
        raise DataError(
            f"holds masks in {masks!r} of the images in {other!r}, and no table that pairs them",
            where=str(path),
            hint="a csv beside them with the columns image and mask, one line for each pair, is "
            "read",
        )


def refuse_coco(file: Path) -> None:
    """Raise `DataError` if a JSON file holds annotations of images as COCO has them."""
    with file.open("rb") as opened:
        text = opened.read(_LOOKED_AT)
        opened.seek(max(file.stat().st_size - _LOOKED_AT, 0))
        text += opened.read(_LOOKED_AT)
    keys = (b'"images"', b'"annotations"', b'"categories"')
    if text.lstrip().startswith(b"{") and sum(key in text for key in keys) >= 2:
        raise DataError(
            "holds annotations as COCO has them, for which no config is proposed",
            where=str(file),
            hint=_TEMPLATE,
        )


def _beginning(file: Path) -> bytes:
    """Return the first bytes of a file."""
    with file.open("rb") as opened:
        return opened.read(_LOOKED_AT)
