"""Decode one image, from a file, bytes or Pillow: header, pixels, hash."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from finetune.data.hashes.contents import (
    HASH_BYTES,
    State,
    is_unchanged,
    naming,
    opened_regular,
    read_contents,
)
from finetune.data.hashes.item_contents import Known, another_one
from finetune.data.media.image_ends import is_cut
from finetune.data.media.pixels import (
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
from finetune.errors import DataError, message_of
from finetune.importing import require
from finetune.reading import A_POINTER, POINTER

_READ_AT_ONCE = 1 << 20

# Pillow logs an error before it raises it. Without a handler, Python would print the log too.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Header(NamedTuple):
    """What an image's header says about its pixels."""

    mode: str
    """Colour mode, as Pillow names it."""
    is_colour: bool
    is_deep: bool
    """Whether it has more than 8 bits per pixel, grey or floats."""
    is_wide: bool
    """Whether it has 16 bits per colour."""
    is_transparent: bool
    is_turned: bool
    """Whether EXIF says that it must be rotated or mirrored."""
    lies: bool
    """Whether that is by a quarter, so that width and height of `size` are to be exchanged."""
    has_frames: bool
    """Whether it has several frames or pages."""
    size: tuple[int, int]
    """Width and height in pixels, before it is turned; of a TIFF afterwards, as Pillow has it."""
    is_cut: bool = False
    """Whether the file ends before its last pixel."""
    palette: bytes = b""
    """Red, green and blue of each colour that a pixel may name by its number; empty without."""


def is_image(value: object) -> bool:
    """Tell whether a value is a PIL image, or an image as `datasets` stores it."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def open_image(
    item: Any,
    mode: Mode,
    known: Known | None = None,
    *,
    rules: PixelRules | None = None,
) -> Any:
    """Return one image as a `PIL.Image` in `mode`, upright and opaque, 8 bits per channel.

    Args:
        item: A path, encoded bytes, `{"bytes", "path"}` with bytes, or a PIL image.
        mode: The colour mode.
        known: Returns state and hash that the item must have; None to accept any contents.
        rules: Reading rules of the source; None for the default ones.

    Raises:
        DataError: the file is missing, incomplete, or has changed. The message names it.
    """
    pil, rules = require("PIL.Image", extra="vision"), rules or PLAIN_RULES
    if _is_decoded(item):
        with _readable(name_of(item), pil):
            return as_pixels(item, mode, rules)
    # The file stays open over decoding and the check: a path could lead to another file in between.
    with _opened(item) as (file, name):
        with naming(name):
            expected = None if known is None else known(file)
        with _readable(name, pil), _pictured(file, pil) as image:
            decoded = as_pixels(image, mode, rules, may_share=True)
            if image.format == "PNG":
                _refuse_broken_chunks(file)
        # Checked after decoding: what is written to the file from now on is not in the result.
        if expected is not None and not _holds(file, *expected):
            raise another_one(name)
    return decoded


def read_header(item: Any) -> Header:
    """Return the header of one image; no pixel is decoded but where the file seems cut off.

    Raises:
        DataError: the file is missing or no image. The message names it.
    """
    pil = require("PIL.Image", extra="vision")
    if _is_decoded(item):
        with _readable(name_of(item), pil):
            return _header(item)
    with _opened(item) as (file, name), _readable(name, pil), _pictured(file, pil) as image:
        header = _header(image)
        return header._replace(is_cut=is_cut(file, image))


def name_of(item: Any) -> str:
    """Return the name of an image for messages."""
    if isinstance(item, Path):
        return str(item)
    name = item.get("path") if isinstance(item, dict) else getattr(item, "filename", None)
    return str(name or "(in memory)")


def _header(image: Any) -> Header:
    # A PNG may have its EXIF data behind the pixels, which would be decoded to reach them.
    has_exif = image.format != "PNG" or "exif" in image.info
    return Header(
        image.mode,
        is_colour(image),
        image.mode in DEEP_MODES,
        has_wide_colours(image),
        bool(image.has_transparency_data),
        has_exif and orientation_of(image) in range(2, 9),
        has_exif and image.format != "TIFF" and orientation_of(image) in range(5, 9),
        bool(getattr(image, "is_animated", False)),
        image.size,
        palette=_palette(image),
    )


def _palette(image: Any) -> bytes:
    """Return the palette of an image whose pixels are numbers of colours; empty for others."""
    # Not by `getpalette`, which decodes the image. Some formats have colours in another order.
    found = image.palette if image.mode == "P" else None
    return bytes(found.palette) if found is not None and found.rawmode in (None, "RGB") else b""


def _is_decoded(item: Any) -> bool:
    """Tell whether an item is a PIL image, not encoded bytes or a file."""
    return is_image(item) and not isinstance(item, dict)


def image_tensor(image: Any) -> Tensor:
    """Return a `PIL.Image` as a tensor `(C, H, W)`, uint8 for the usual modes."""
    image.load()  # first, since some formats tell their mode only then
    if image.mode == "RGB":
        # One channel at a time: to reorder the pixels of all three takes torch as long as decoding.
        width, height = image.size
        flat = bytearray().join(image.tobytes("raw", channel) for channel in "RGB")
        return torch.from_numpy(np.frombuffer(flat, np.uint8).reshape(3, height, width))
    return pixel_view(image).contiguous()


def pixel_view(image: Any) -> Tensor:
    """Return the same as `image_tensor`, but in memory pixel after pixel, as Pillow has them."""
    # `np.array` copies: the tensor must not share memory with an image that Pillow may close.
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1)


def mask_tensor(image: Any) -> Tensor:
    """Return a mask that `open_image` has read as class numbers `(H, W)` in int16.

    Not in bytes, which would count as pixels and be scaled to 0..1.
    """
    return torch.from_numpy(np.array(image).astype(np.int16))


def digest_of(item: Any) -> bytes:
    """Return a hash of the contents of one item of an image column."""
    if isinstance(item, Path):
        return read_contents([item]).hashes[0].numpy().tobytes()
    if _is_decoded(item):
        with naming(name_of(item)):
            # The same bytes mean other pixels with another mode, size or palette.
            more = (item.mode, item.size, item.getpalette(), item.info.get("transparency"))
            return hash_bytes(repr(more).encode() + bytes(item.tobytes()))
    with _opened(item) as (file, _):
        return hash_bytes(file.read())


def hash_bytes(raw: bytes) -> bytes:
    """Return a hash of bytes, of 16 bytes."""
    return blake2b(raw, digest_size=HASH_BYTES).digest()


@contextmanager
def _pictured(source: BinaryIO, pil: ModuleType) -> Iterator[Any]:
    """Open an image of a known format; refuse one with so many pixels that Pillow would warn."""
    try:
        opened = pil.open(source, formats=_formats())
    except pil.UnidentifiedImageError as error:
        source.seek(0)
        if source.read(len(POINTER)) == POINTER:
            raise PixelError(f"it is {A_POINTER}") from error
        raise PixelError("it is in no known format of images") from error
    with opened as image:
        width, height = image.size
        # Pillow itself only warns at this size, and raises at twice of it.
        if pil.MAX_IMAGE_PIXELS is not None and width * height > pil.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{width} x {height} are more than {pil.MAX_IMAGE_PIXELS} pixels; make it smaller"
            )
        yield image


def _refuse_broken_chunks(file: BinaryIO) -> None:
    """Verify the checksums of a PNG: in small files Pillow does not check those of the pixels.

    Raises:
        PixelError: a checksum is wrong. Files that end too early are left to Pillow.
    """
    # Chunks follow the 8 bytes of the signature: length, type, data, CRC over type and data.
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
    """Return the formats that are read: bitmaps that Pillow itself decodes.

    Others are refused: for EPS, Pillow starts Ghostscript, which runs the program in the file.
    The first six are those that Pillow knows before it loads all its readers.
    """
    usual = ("PNG", "JPEG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "JPEG2000")
    return (*usual, "AVIF") if find_spec("PIL.AvifImagePlugin") else usual


@contextmanager
def _readable(name: str, pil: ModuleType) -> Iterator[None]:
    """Turn exceptions of Pillow into a `DataError` that names the image."""
    try:
        with naming(name), warnings.catch_warnings():
            # Warnings are either followed by an error, or do not concern the pixels.
            warnings.simplefilter("ignore")
            yield
    except PixelError as error:
        raise DataError(f"cannot read the image {name!r}: {error}", hint=error.hint) from error
    except (*FAULTS, pil.DecompressionBombError) as error:
        reason = message_of(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot read the image {name!r}: {reason}") from error


@contextmanager
def _opened(item: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Yield an encoded image as an open file, and its name for messages."""
    if isinstance(item, str | Path):
        with opened_regular(Path(item)) as file:
            yield file, str(item)
    elif isinstance(item, bytes):
        yield BytesIO(item), "(in memory)"
    elif isinstance(item, dict) and isinstance(item["bytes"], bytes):
        yield BytesIO(item["bytes"]), str(item["path"] or "(in memory)")
    else:
        raise DataError(f"needs an image or the path of one, got {type(item).__name__}")


def _holds(file: BinaryIO, state: State, digest: bytes) -> bool:
    """Tell whether an encoded image still has the state or hash it had when it was identified."""
    if isinstance(file, BytesIO):
        return hash_bytes(file.getvalue()) == digest
    return is_unchanged(file, state, digest)
