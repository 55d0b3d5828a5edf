"""Recognise data in the form of other tools, for which no config can be proposed, and say so."""

import mmap
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune.data.media.decoding import open_image
from finetune.data.readers.json_lists import keys_of_object
from finetune.errors import DataError, FinetuneError

_LOOKED_AT = 1 << 16
"""Bytes of a text that are looked at."""
_COLOURS_OF_MASK = 256
"""Most colours of a mask, which one channel cannot exceed; a colour photo has thousands."""
_MASK_FOLDERS = frozenset(
    {"mask", "masks", "annotation", "annotations", "labels", "gt", "segmentation", "segmentations"}
)
_MASK_NAME = re.compile(r"(.+)[-_. ](mask|masks|seg|segmentation|gt|label|labels)", re.IGNORECASE)
"""Finds the name of the image in `cat_001_mask`."""
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
            # In a folder of that name alone: a text of a sample may begin with numbers as well.
            first = _beginning(file).decode("utf-8", "replace").partition("\n")[0].strip()
            if _YOLO_LINE.fullmatch(first):
                raise DataError(
                    f"holds boxes as YOLO writes them, such as {str(file.relative_to(path))!r}, "
                    "which no source reads",
                    where=str(path),
                    hint=f"convert them to COCO; {_TEMPLATE}",
                )


def refuse_masks(path: Path, files: Sequence[Path]) -> None:
    """Raise `DataError` if some images are masks of the others: by folder, or by their endings.

    Args:
        path: The folder.
        files: The images below it.
    """
    masks, others = dict[str, Path](), dict[str, Path]()
    for file in files:
        name = _image_of_mask(file, path)
        (others if name is None else masks)[name or file.stem] = file
    # A class may be called so, as `mask` and `no_mask` are: its photos are no masks.
    if masks and masks.keys() <= others.keys() and _is_mask(next(iter(masks.values()))):
        name, mask = next(iter(masks.items()))
        raise DataError(
            f"holds masks, such as {str(mask.relative_to(path))!r} of the image "
            f"{str(others[name].relative_to(path))!r}, and no table that pairs them",
            where=str(path),
            hint="a csv beside them with the columns image and mask, one line for each pair, is "
            "read",
        )


def _image_of_mask(file: Path, path: Path) -> str | None:
    """Return the name, without ending, of the image that a mask is of; None if it is no mask."""
    if (found := _MASK_NAME.fullmatch(file.stem)) is not None:
        return found[1]
    folders = file.relative_to(path).parts[:-1]
    return file.stem if any(folder.lower() in _MASK_FOLDERS for folder in folders) else None


def _is_mask(file: Path) -> bool:
    """Tell whether an image has few colours, as a mask has."""
    try:
        return open_image(file, "RGB").getcolors(_COLOURS_OF_MASK) is not None
    except DataError:
        return False


def refuse_coco(file: Path) -> None:
    """Raise `DataError` if a JSON file holds annotations of images as COCO has them."""
    if _is_coco(file):
        raise DataError(
            "holds annotations as COCO has them, for which no config is proposed",
            where=str(file),
            hint=_TEMPLATE,
        )


def _is_coco(file: Path) -> bool:
    """Tell whether a file is one JSON object with annotations and images, or their categories."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened:
        # Mapped, as such a file may be larger than memory.
        text = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    is_one = text[:_LOOKED_AT].lstrip().startswith(b"{") and text.find(b"}\n{") < 0
    # Most files lack the word, and need not be looked at any further.
    if not is_one or text.find(b'"annotations"') < 0:
        return False
    found = set[str]()
    with suppress(FinetuneError, UnicodeDecodeError):
        for key in keys_of_object(file):
            found.add(key)
            if "annotations" in found and found & {"images", "categories"}:
                return True
    return False


def _beginning(file: Path) -> bytes:
    """Return the first bytes of a file."""
    with file.open("rb") as opened:
        return opened.read(_LOOKED_AT)
