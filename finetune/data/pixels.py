"""How any image becomes grey or RGB pixels of 8 bits: decided here alone, for every use of it.

Images of 8 bits without transparency keep their values. Letters: H height, W width.
"""

from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from finetune.config.image_keys import ImageKeys
from finetune.importing import require

Mode = Literal["RGB", "L"]
"""Colour mode of a column, in the words of Pillow: colour or grey."""
Rgb = tuple[int, int, int]

FAULTS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError,
    RuntimeError, AttributeError, ArithmeticError,
)  # fmt: skip
"""Exceptions that Pillow raises for damaged or hostile files, beside those of `struct`, `zlib`."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Grey modes of more than 8 bits. Pillow brings colours of 16 bits to 8 by itself."""
_KNOWN_MODES = GREY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"}

_ORIENTATION, _BITS, _SAMPLE_FORMAT = 0x0112, 258, 339
"""Numbers of tags of EXIF and TIFF."""
_SIGNED = 2
_RANGE_HINT = "say which are black and white, beside the path of the source: range: [{low}, {high}]"


class PixelError(ValueError):
    """An image whose values cannot be read as pixels; `hint` names the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class PixelRules:
    """What a source says of its images.

    Args:
        background: The colour that transparent images are laid on.
        range: The values that become black and white where images have more than 8 bits; None for
            the range of their type.
    """

    background: Rgb = (255, 255, 255)
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, source: object) -> "PixelRules":
        """Return the rules that a source names; the usual ones where it has no such keys."""
        if not isinstance(source, ImageKeys):
            return cls()
        return cls(source.background_rgb, source.range)


PLAIN_RULES = PixelRules()
"""Those of a source that says nothing of its images."""


def as_pixels(image: Any, mode: Mode, rules: PixelRules) -> Any:
    """Return a `PIL.Image` upright, opaque, and in `mode`, each channel of 8 bits.

    Raises:
        PixelError: its values have no known range, or its colours are of an unknown kind.
    """
    pil = require("PIL.Image", extra="vision")
    if rules.range is not None and has_wide_colours(image):
        raise PixelError("range is for grey images, and it has 16 bits for each colour")
    image.load()  # first, as some formats keep what turns an image behind its pixels
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
    return opaque if opaque.mode == mode and opaque is not image else opaque.convert(mode)


def orientation_of(image: Any) -> int:
    """Return how EXIF says an image has to be turned, 1 to 8; 1 is as it is.

    EXIF data that cannot be read turn nothing, as in any viewer.
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
"""What brings an image upright, by the orientation of EXIF 2.3 (section 4.6.4)."""


def is_colour(image: Any) -> bool:
    """Tell by its header whether an image may hold colours."""
    return image.mode not in GREY_MODES


def has_wide_colours(image: Any) -> bool:
    """Tell by its header whether an image has 16 bits for each colour: Pillow reads the upper 8."""
    if image.mode in DEEP_MODES or not getattr(image, "tile", None):
        return False
    how = image.tile[0][3]  # of the decoder, such as "RGB;16B"
    packing = how[0] if isinstance(how, tuple) and how else how
    return isinstance(packing, str) and ";16" in packing


def _laid_on(rgba: Any, background: Rgb, pil: ModuleType) -> Any:
    """Lay an image with alpha on a colour: what no viewer shows, the network does not see."""
    return pil.alpha_composite(pil.new("RGBA", rgba.size, background), rgba).convert("RGB")


def _scaled(image: Any, rules: PixelRules, pil: ModuleType) -> Any:
    """Bring a grey image of more than 8 bits to 8, its range to 0..255."""
    values = np.asarray(image)
    low, high = rules.range or _range_of_type(image, values)
    if values.dtype.kind == "u":  # 16 bits: a table of all their values takes less memory
        shares = (np.arange(65536, dtype=np.float64) - low) / (high - low)
        grey = pil.fromarray(_as_bytes(shares)[values])
    else:
        if not np.isfinite(values).all():
            raise PixelError("some of its values are no finite numbers")
        grey = pil.fromarray(_as_bytes((values.astype(np.float64) - low) / (high - low)))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(pil.fromarray((values != clear).astype(np.uint8) * 255))
        return _laid_on(grey.convert("RGBA"), rules.background, pil)
    return grey


def _as_bytes(shares: Any) -> Any:
    """Turn shares of the range, those beyond it cut off, into the nearest of 0..255."""
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def _range_of_type(image: Any, values: Any) -> tuple[float, float]:
    """Return the smallest and the largest value of the kind of number that an image holds.

    Raises:
        PixelError: the kind is so wide that what is white cannot be told from it.
    """
    if values.dtype.kind == "u":
        return 0, 2 ** min(16, _tag(image, _BITS, 16)) - 1
    low, high = (values.min().item(), values.max().item()) if values.size else (0, 0)
    if values.dtype.kind == "f":
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
    found = f"its values are {kind} from {low:.6g} to {high:.6g}"
    hint = _RANGE_HINT.format(low=f"{low:.6g}", high=f"{max(high, low + 1):.6g}")
    return PixelError(f"{found}, and no type says which are black and white", hint)


def _tag(image: Any, number: int, default: int) -> int:
    """Return the first value of a tag of a TIFF file."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default
