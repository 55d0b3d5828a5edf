"""Find the channels of image arrays, and move them to the front, where networks take them.

Letters: N samples, H height, W width, C channels.
"""

from typing import Literal

import torch
from torch import Tensor

from finetune.errors import DataError, Key

Channels = Literal["first", "last"]
_COLOURS = (3, 4)
"""Numbers of channels of colour images, without and with transparency."""
_LEAST_SIDE = 5
"""Shorter sides could be channels as well."""


def channels_of(values: Tensor, named: Channels | None, *, is_image: bool) -> Channels:
    """Return where a column of arrays has its channels.

    They are last if `(N, H, W, C)` is the only sensible reading: 3 or 4 channels and sides too long
    to be channels; also a single channel, in a column that must hold images.

    Args:
        values: The column, of any shape.
        named: What the config says; None to decide by the shape.
        is_image: Whether the column must hold images.
    """
    # Other numbers of axes are no images with channels, whatever the config says of the source.
    if named is not None or values.ndim != 4:
        return named if named is not None and values.ndim == 4 else "first"
    _, height, width, last = values.shape
    few = (*_COLOURS, 1) if is_image or values.dtype == torch.uint8 else _COLOURS
    # `(N, 3, 32, 3)` could be read either way.
    has_sides = min(height, width) >= _LEAST_SIDE
    return "last" if last in few and has_sides else "first"


def notes_on_transparency(name: str, shape: tuple[int, ...], channels: Channels) -> list[str]:
    """Return a note if samples have four channels, of which the last may be transparency."""
    if len(shape) != 3 or min(shape[:2] if channels == "last" else shape[1:]) < _LEAST_SIDE:
        return []
    if shape[2 if channels == "last" else 0] != 4:
        return []
    return [
        f"column {name!r}: images in arrays have 4 channels, and the fourth is taken as it is: "
        "nothing is laid on a background, as it is for files"
    ]


def channels_first(values: Tensor, channels: Channels) -> Tensor:
    """Return a column as `(N, C, H, W)`; `channels` says where it has its channels."""
    return values.permute(0, 3, 1, 2).contiguous() if channels == "last" else values


def refuse_scrambling(old: tuple[int, ...], new: tuple[int, ...], key: Key) -> None:
    """Raise if `shape` would cut `(H, W, C)` into `(C, H, W)`, mixing all channels into each.

    Raises:
        DataError: the shape does so.
    """
    if len(old) == 3 and 1 < old[2] < min(old[:2]) and new == (old[2], *old[:2]):
        raise DataError(
            f"cutting samples of shape {old} anew as {new} would mix their channels",
            hint="leave out shape, and say where the channels are: channels: last, beside the path",
            key=key,
        )
