"""Keys of a source on how its images are read: background, range, channels."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from finetune.config.base import Node

_COLOURS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "grey": (128, 128, 128),
    "silver": (192, 192, 192),
    "red": (255, 0, 0),
    "maroon": (128, 0, 0),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "olive": (128, 128, 0),
    "lime": (0, 255, 0),
    "green": (0, 128, 0),
    "cyan": (0, 255, 255),
    "aqua": (0, 255, 255),
    "teal": (0, 128, 128),
    "blue": (0, 0, 255),
    "navy": (0, 0, 128),
    "magenta": (255, 0, 255),
    "fuchsia": (255, 0, 255),
    "purple": (128, 0, 128),
}
"""Colours by their HTML names."""
# In quotes in the file: YAML takes what follows a bare # for a comment.
_HEX_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_Value = Annotated[float, Field(ge=-1e30, le=1e30)]
_Byte = Annotated[int, Field(ge=0, le=255)]


class ImageKeys(Node):
    """How a source's images are read."""

    background: str | tuple[_Byte, _Byte, _Byte] = "white"
    """Colour laid behind transparent images: a name such as `black`, `"#rrggbb"`, or `[red, green, blue]` from 0 to 255."""
    range: tuple[_Value, _Value] | None = None
    """The two values that become black and white in images of more than 8 bits; values beyond are clipped; exchanged for a TIFF that says that its white is 0. If left out, the range of their type: 0 to 65535 for 16 bits, 0 to 1 for floats that lie within it; others are refused. Images of 8 bits keep their values."""
    channels: Literal["grey", "rgb", "first", "last"] | None = None
    """`grey` or `rgb`: what every image file is converted to; if left out, colour if any image has colour. `first` or `last`: position of the channels in arrays of images, as `(C, H, W)` or `(H, W, C)`; if left out, `last` where the shape is unambiguous."""

    @field_validator("background", mode="after")
    @classmethod
    def _is_a_colour(cls, value: str | tuple[int, int, int]) -> str | tuple[int, int, int]:
        if isinstance(value, str) and not _HEX_COLOUR.fullmatch(value) and value not in _COLOURS:
            raise ValueError(f"no colour {value!r}; known are #rrggbb and: {', '.join(_COLOURS)}")
        return value

    @field_validator("range", mode="after")
    @classmethod
    def _goes_up(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        # `not <` also refuses two equal values, by whose difference images would be divided.
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"needs the smaller value first, got [{value[0]}, {value[1]}]")
        return value

    @property
    def colour_mode(self) -> Literal["RGB", "L"] | None:
        """The colour mode that every image is converted to; None keeps that of the images."""
        return {"rgb": "RGB", "grey": "L"}.get(self.channels or "")  # type: ignore[return-value]

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Red, green and blue of `background`, each from 0 to 255."""
        if not isinstance(self.background, str):
            return self.background
        if self.background in _COLOURS:
            return _COLOURS[self.background]
        red, green, blue = bytes.fromhex(self.background[1:])
        return red, green, blue
