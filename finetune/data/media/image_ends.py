"""Tell by the end of an image file whether part of it is missing, without decoding whole ones."""

from collections.abc import Callable
from typing import Any, BinaryIO

from finetune.data.media.pixels import FAULTS

_TAIL = 4096
"""Bytes looked at; cameras write data of their own behind the end of a JPEG."""


def is_cut(file: BinaryIO, image: Any) -> bool:
    """Tell whether the pixels of an image cannot be read to their end.

    Only a file that does not end as its format says is decoded: some lack nothing but that end.

    Args:
        file: The encoded image; its position is restored.
        image: The same, opened by Pillow and not decoded.
    """
    ends_well = _ENDS.get(image.format)
    position = file.tell()
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    file.seek(0)
    head = file.read(8)
    # Pillow reads the pixels from the same file later, on from where it stopped.
    file.seek(position)
    if ends_well is None or ends_well(head, tail, size):
        return False
    try:
        image.load()
    except FAULTS:
        return True
    return False


def _as_told(head: bytes, size: int, start: int, more: int) -> bool:
    """Tell whether a file has the size that its header names in four bytes, or more."""
    return int.from_bytes(head[start : start + 4], "little") + more <= size


_ENDS: dict[str, Callable[[bytes, bytes, int], bool]] = {
    "JPEG": lambda head, tail, size: b"\xff\xd9" in tail,
    "PNG": lambda head, tail, size: b"IEND" in tail,
    # Zeros behind the end of a GIF are padding, and cut nothing off.
    "GIF": lambda head, tail, size: tail.rstrip(b"\0").endswith(b";"),
    "WEBP": lambda head, tail, size: _as_told(head, size, 4, 8),
    "BMP": lambda head, tail, size: _as_told(head, size, 2, 0),
}
"""Whether a file ends well: by its first 8 bytes, its last ones and its size; by format."""
