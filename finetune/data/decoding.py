"""One image of a file, encoded bytes or Pillow: its header, its pixels, its hash."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32, error as ZlibError

import numpy as np
import torch
from torch import Tensor

from finetune.data.contents import (
    HASH_BYTES,
    State,
    is_unchanged,
    naming,
    opened_regular,
    read_contents,
)
from finetune.data.pixels import (
    DEEP_MODES,
    FAULTS,
    PLAIN_RULES,
    Mode,
    PixelError,
    PixelRules,
    as_pixels,
    has_wide_colours,
    is_colour,
    orientation_of,
)
from finetune.errors import DataError
from finetune.importing import require

_FAULTS = (*FAULTS, StructError, ZlibError)
"""Exceptions that Pillow raises for damaged or hostile files."""
_READ_AT_ONCE = 1 << 20

# Pillow logs what it then raises. Without a handler, Python would print that as a second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Header(NamedTuple):
    """What the header of an image says of its pixels."""

    mode: str
    """Colour mode, in the words of Pillow."""
    is_colour: bool
    is_deep: bool
    """Whether it has more than 8 bits for each pixel, grey or floats."""
    is_wide: bool
    """Whether it has 16 bits for each colour."""
    is_transparent: bool
    is_turned: bool
    """Whether EXIF says that it is to be turned or mirrored."""
    has_frames: bool
    """Whether it has several frames or pages."""


def is_image(value: object) -> bool:
    """Tell whether `value` is a PIL image, or an image as `datasets` stores it."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def open_image(
    item: Any,
    mode: Mode,
    known: tuple[State, bytes] | None = None,
    *,
    rules: PixelRules | None = None,
) -> Any:
    """Decode one image to a `PIL.Image` in `mode`, upright, opaque, each channel of 8 bits.

    Args:
        item: A path, encoded bytes, `{"bytes", "path"}` with bytes, or a PIL image.
        mode: The colour mode.
        known: State and hash of what the item must hold.
        rules: What the source says of its images.

    Raises:
        DataError: the file is missing, not a whole image, or another one. The message names it.
    """
    pil, rules = require("PIL.Image", extra="vision"), rules or PLAIN_RULES
    if _is_decoded(item):
        with _readable(name_of(item), pil):
            return as_pixels(item, mode, rules)
    with _opened(item) as (file, name):
        with _readable(name, pil), _pictured(file, pil) as image:
            decoded = as_pixels(image, mode, rules)
            if image.format == "PNG":
                _refuse_broken_chunks(file)
        # Looked at afterwards: what is written into it from here on is not in what was decoded.
        if known is not None and not _holds(file, *known):
            raise DataError(
                f"the image {name!r} is another one than when the data was opened",
                hint="start the command again; what was stored of the old one is not used",
            )
    return decoded


def read_header(item: Any) -> Header:
    """Look at the header of one image; no pixel is decoded.

    Raises:
        DataError: the file is missing, or no image. The message names it.
    """
    pil = require("PIL.Image", extra="vision")
    if _is_decoded(item):
        with _readable(name_of(item), pil):
            return _header(item)
    with _opened(item) as (file, name), _readable(name, pil), _pictured(file, pil) as image:
        return _header(image)


def name_of(item: Any) -> str:
    """Return the name of an image for messages."""
    if isinstance(item, Path):
        return str(item)
    name = item.get("path") if isinstance(item, dict) else getattr(item, "filename", None)
    return str(name or "(in memory)")


def _header(image: Any) -> Header:
    # A PNG may keep its EXIF data behind its pixels, and would decode these to look for them.
    has_exif = image.format != "PNG" or "exif" in image.info
    return Header(
        image.mode,
        is_colour(image),
        image.mode in DEEP_MODES,
        has_wide_colours(image),
        bool(image.has_transparency_data),
        has_exif and orientation_of(image) in range(2, 9),
        bool(getattr(image, "is_animated", False)),
    )


def _is_decoded(item: Any) -> bool:
    return is_image(item) and not isinstance(item, dict)


def verify_image(item: Any) -> None:
    """Check an encoded image without decoding it.

    Raises:
        DataError: a file is missing or no image. The message names it.
    """
    pil = require("PIL.Image", extra="vision")
    if isinstance(item, dict | bytes | Path):
        with _opened(item) as (file, name), _readable(name, pil), _pictured(file, pil) as image:
            image.verify()


def image_tensor(image: Any) -> Tensor:
    """Turn a `PIL.Image` into `(C, H, W)`, uint8 for the usual modes."""
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def digest_of(item: Any) -> bytes:
    """Return a hash of what one item of a column of images holds."""
    if isinstance(item, Path):
        return read_contents([item]).hashes[0].numpy().tobytes()
    if _is_decoded(item):
        with naming(name_of(item)):
            # All that the pixels mean rests on these as well.
            more = (item.mode, item.size, item.getpalette(), item.info.get("transparency"))
            return hash_bytes(repr(more).encode() + bytes(item.tobytes()))
    with _opened(item) as (file, _):
        return hash_bytes(file.read())


def hash_bytes(raw: bytes) -> bytes:
    """Return the hash of some bytes."""
    return blake2b(raw, digest_size=HASH_BYTES).digest()


@contextmanager
def _pictured(source: BinaryIO, pil: ModuleType) -> Iterator[Any]:
    """Open an image of a known format, unless it is so large that Pillow warns of it."""
    try:
        opened = pil.open(source, formats=_formats())
    except pil.UnidentifiedImageError as error:
        raise PixelError("it is in no known format of images") from error
    with opened as image:
        width, height = image.size
        if pil.MAX_IMAGE_PIXELS is not None and width * height > pil.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{width} x {height} are more than {pil.MAX_IMAGE_PIXELS} pixels; make it smaller"
            )
        yield image


def _refuse_broken_chunks(file: BinaryIO) -> None:
    """Check the checksums of a PNG: of small files Pillow leaves those of the pixels unread.

    Raises:
        PixelError: one is wrong. A file that only ends too early is left to Pillow.
    """
    file.seek(8)
    while len(head := file.read(8)) == 8:
        left, checksum = int.from_bytes(head[:4]), crc32(head[4:])
        while left and (part := file.read(min(left, _READ_AT_ONCE))):
            left, checksum = left - len(part), crc32(part, checksum)
        told = file.read(4)
        if len(told) == 4 and int.from_bytes(told) != checksum:
            raise PixelError("its checksum is wrong: the file is damaged")
        if head[4:] == b"IEND":
            return


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are read: pictures of pixels, decoded by Pillow itself.

    Others are left alone: for EPS Pillow starts Ghostscript, which runs the program in the file.
    The first six are those that Pillow knows before it loads all its readers.
    """
    usual = ("PNG", "JPEG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "JPEG2000")
    return (*usual, "AVIF") if find_spec("PIL.AvifImagePlugin") else usual


@contextmanager
def _readable(name: str, pil: ModuleType) -> Iterator[None]:
    """Turn what Pillow raises into an error that names the image."""
    try:
        with naming(name), warnings.catch_warnings():
            # Told by the errors below, or of no consequence for the pixels.
            warnings.simplefilter("ignore")
            yield
    except PixelError as error:
        raise DataError(f"cannot read the image {name!r}: {error}", hint=error.hint) from error
    except (*_FAULTS, pil.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot read the image {name!r}: {reason}") from error


@contextmanager
def _opened(item: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Open an encoded image; give with it its name for messages."""
    if isinstance(item, Path):
        with opened_regular(item) as file:
            yield file, str(item)
    elif isinstance(item, bytes):
        yield BytesIO(item), "(in memory)"
    elif isinstance(item, dict) and isinstance(item["bytes"], bytes):
        yield BytesIO(item["bytes"]), str(item["path"] or "(in memory)")
    else:
        raise DataError(f"needs an image or the path of one, got {type(item).__name__}")


def _holds(file: BinaryIO, state: State, digest: bytes) -> bool:
    """Tell whether an encoded image is the one that was identified."""
    if isinstance(file, BytesIO):
        return hash_bytes(file.getvalue()) == digest
    return is_unchanged(file, state, digest)
