"""Turn any image into grey or RGB pixels of 8 bits; the only place that decides how.

Images of 8 bits without transparency keep their values. Letters: H height, W width.
"""

from contextlib import suppress
from dataclasses import dataclass
from struct import error as StructError
from types import ModuleType
from typing import Any, Literal
from zlib import error as ZlibError

import numpy as np

from finetune.config.bounds import MAX_PIXEL
from finetune.config.image_keys import ImageKeys
from finetune.importing import require

Mode = Literal["RGB", "L", "mask"]
"""Colour mode of a column, as Pillow names it: colour or grey; or `mask`: classes of pixels."""
Rgb = tuple[int, int, int]

FAULTS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError,
    RuntimeError, AttributeError, ArithmeticError, StructError, ZlibError,
)  # fmt: skip
"""Exceptions that Pillow raises for damaged or malicious files."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Grey modes of more than 8 bits. Pillow itself reduces colours of 16 bits to 8."""
_KNOWN_MODES = GREY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"}

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
"""Numbers of EXIF and TIFF tags."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_SIGNED = 2
_RANGE_HINT = "say which are black and white, beside the path of the source: range: [{low}, {high}]"


class PixelError(ValueError):
    """An image's values cannot be read as pixels; `hint` names the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How a source wants its images to be read.

    Args:
        background: Colour behind transparent images.
        range: The values that become black and white in images of more than 8 bits; None for the
            range of their type.
    """

    background: Rgb = (255, 255, 255)
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, source: object) -> "PixelRules":
        """Return the rules in a source's keys; the default ones if it has no such keys."""
        if not isinstance(source, ImageKeys):
            return cls()
        return cls(source.background_rgb, source.range)


PLAIN_RULES = PixelRules()
"""Rules of a source that says nothing about its images."""


def as_pixels(image: Any, mode: Mode, rules: PixelRules, *, may_share: bool = False) -> Any:
    """Return a `PIL.Image` that is upright, opaque and in `mode`, with 8 bits per channel.

    A mask keeps its values: numbers of classes, or of colours in a palette.

    Args:
        image: The image as Pillow reads it.
        mode: The colour mode.
        rules: Reading rules of the source.
        may_share: Whether `image` itself may be returned, as nobody else has it.

    Raises:
        PixelError: its values have no known range, or its colour mode is unknown.
    """
    pil = require("PIL.Image", extra="vision")
    if mode == "mask":
        classes = _classes_of_pixels(image, pil)
        # After the pixels are loaded: Pillow itself turns a TIFF then, and drops the orientation.
        turn = _TURNS.get(orientation_of(image))
        return classes if turn is None else classes.transpose(pil.Transpose[turn])
    if rules.range is not None and has_wide_colours(image):
        raise PixelError("range is for grey images, and it has 16 bits for each colour")
    image.load()  # first, since some formats store the orientation behind the pixels
    # `convert` of a mode that is new to us might do anything to the values.
    if image.mode not in _KNOWN_MODES:
        raise PixelError(f"its colour mode {image.mode!r} is not known", "save it as RGB")
    if image.mode in DEEP_MODES:
        opaque = _scaled(image, rules, pil)
    elif image.has_transparency_data:
        opaque = _laid_on(image.convert("RGBA"), rules.background, pil)
    else:
        opaque = image
    turn = _TURNS.get(orientation_of(image))
    if turn is not None:
        opaque = opaque.transpose(pil.Transpose[turn])
    # `convert` also copies: what is returned must not share pixels with the caller's image.
    is_own = may_share or opaque is not image
    return opaque if opaque.mode == mode and is_own else opaque.convert(mode)


def orientation_of(image: Any) -> int:
    """Return how EXIF says an image must be turned, from 1 (as it is) to 8.

    EXIF data that cannot be read turn nothing, as in image viewers.
    """
    with suppress(*FAULTS):
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    return 1


_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Operation that brings an image upright, by the orientation of EXIF 2.3 (section 4.6.4)."""


def is_colour(image: Any) -> bool:
    """Tell by its header whether an image may have colours."""
    return image.mode not in GREY_MODES


def has_wide_colours(image: Any) -> bool:
    """Tell by its header whether an image has 16 bits per colour; Pillow reads the upper 8."""
    if image.mode in DEEP_MODES or not getattr(image, "tile", None):
        return False
    how = image.tile[0][3]  # of the decoder, such as "RGB;16B"
    packing = how[0] if isinstance(how, tuple) and how else how
    return isinstance(packing, str) and ";16" in packing


def _classes_of_pixels(image: Any, pil: ModuleType) -> Any:
    """Return a mask as a `PIL.Image` of its values.

    Raises:
        PixelError: pixels have colours or are blurred, so that no number of a class is certain.
    """
    if image.format == "JPEG":
        raise PixelError("it is a JPEG, which blurs the classes of a mask", "save masks as PNG")
    if _is_white_zero(image) and image.mode != "1":
        # Viewers, and Pillow up to 8 bits, show inverted numbers: both could be the classes.
        raise PixelError(
            "it is a TIFF whose white is 0, which inverts numbers", "save masks as PNG"
        )
    image.load()
    values: Any = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        # Many programs save grey as three equal channels.
        channels = values[..., :3] if image.mode != "LA" else values[..., :1]
        is_grey = (channels == channels[..., :1]).all()
        is_opaque = image.mode == "RGB" or (values[..., -1] == 255).all()
        values = channels[..., 0] if is_grey and is_opaque else None
    elif image.mode not in ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"):
        values = None
    if values is None:
        raise PixelError(
            f"its pixels are colours ({image.mode}), a mask has one whole number a pixel",
            "save masks as PNG in grey or with a palette",
        )
    if values.size and (values.min() < 0 or values.max() > MAX_PIXEL):
        raise PixelError(f"a mask has numbers from 0 to {MAX_PIXEL}, it has {values.max()}")
    return pil.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16))


def _laid_on(rgba: Any, background: Rgb, pil: ModuleType) -> Any:
    """Return an image with alpha laid on a colour: the network sees what a viewer shows."""
    return pil.alpha_composite(pil.new("RGBA", rgba.size, background), rgba).convert("RGB")


def _scaled(image: Any, rules: PixelRules, pil: ModuleType) -> Any:
    """Return a grey image of more than 8 bits reduced to 8, its range scaled to 0..255."""
    values = np.asarray(image)
    low, high = rules.range or _range_of_type(image, values)
    if _is_white_zero(image):  # Pillow inverts such images of 8 bits and less, but no deeper ones
        low, high = high, low
    if values.dtype.kind == "u":  # 16 bits: a table of all their values takes less memory
        shares = (np.arange(65536, dtype=np.float64) - low) / (high - low)
        grey = pil.fromarray(_as_bytes(shares)[values])
    else:
        if not np.isfinite(values).all():
            raise PixelError("some of its values are no finite numbers")
        grey = pil.fromarray(_as_bytes((values.astype(np.float64) - low) / (high - low)))
    # By the values before scaling, which makes one grey of many of them.
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(pil.fromarray((values != clear).astype(np.uint8) * 255))
        return _laid_on(grey.convert("RGBA"), rules.background, pil)
    return grey


def _is_white_zero(image: Any) -> bool:
    """Tell whether an image is a TIFF whose smallest value is white, as scanners write them."""
    return _tag(image, _PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO


def _as_bytes(shares: Any) -> Any:
    """Return shares of a range as the nearest of 0..255, clipped to it."""
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def _range_of_type(image: Any, values: Any) -> tuple[float, float]:
    """Return the values that are black and white for the number type of an image.

    Raises:
        PixelError: the type is so wide that it does not tell which value is white.
    """
    if values.dtype.kind == "u":
        return 0, 2 ** min(16, _tag(image, _BITS, 16)) - 1
    # Only for the message: a range by what one image holds would differ from image to image.
    low, high = (values.min().item(), values.max().item()) if values.size else (0, 0)
    if values.dtype.kind == "f":
        # Floats have no largest value; 0 to 1 is the only range that is common.
        if low >= 0 and high <= 1:
            return 0, 1
        raise _no_range("floats", low, high)
    if image.format in ("PNG", "PPM"):  # of 16 bits, which Pillow gives as 32
        return 0, 65535
    bits = _tag(image, _BITS, 32)
    if bits <= 16 and _tag(image, _SAMPLE_FORMAT, _SIGNED) != _SIGNED:
        return 0, 2**bits - 1
    raise _no_range(f"whole numbers of {bits} bits", low, high)


def _no_range(kind: str, low: float, high: float) -> PixelError:
    """Return the error for an image whose type does not tell its range."""
    found = f"its values are {kind} from {low:.6g} to {high:.6g}"
    hint = _RANGE_HINT.format(low=f"{low:.6g}", high=f"{max(high, low + 1):.6g}")
    return PixelError(f"{found}, and no type says which are black and white", hint)


def _tag(image: Any, number: int, default: int) -> int:
    """Return the first value of a TIFF tag, or `default` if there is none."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default
