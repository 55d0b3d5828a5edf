"""Images as files, encoded bytes or PIL images, decoded one at a time as they are read."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from types import ModuleType
from typing import Any, BinaryIO
from zlib import error as ZlibError

import numpy as np
import torch
from torch import Tensor

from finetune.data.contents import (
    HASH_BYTES,
    Contents,
    KnownFiles,
    State,
    as_hashes,
    is_unchanged,
    naming,
    opened_regular,
    read_contents,
)
from finetune.errors import DataError
from finetune.importing import require
from finetune.reading import first_outside
from finetune.redaction import redacted

_FAULTS = (
    OSError, ValueError, SyntaxError, StructError, EOFError, LookupError, TypeError, OverflowError,
    MemoryError, RuntimeError, AttributeError, ZlibError,
)  # fmt: skip
"""Exceptions that Pillow raises for damaged or hostile files."""
_GREY_MODES = {"1", "L", "LA", "I;16", "I", "F"}


@dataclass(frozen=True, slots=True)
class Images:
    """A column of images, none of which is decoded before it is asked for.

    Args:
        items: Each the path of a file, a PIL image, encoded bytes, or the `{"bytes", "path"}` of
            `datasets` with its bytes. A name that data gives is no path yet: see `named_files`.
        mode: `RGB` or `L`; every image is brought to it.
        order: Positions in `items` of this column's samples.
        contents: What the items hold, once they were identified.
    """

    items: Sequence[Any]
    mode: str
    order: Sequence[int]
    contents: Contents | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        """Decode one image to a `PIL.Image` in the column's mode.

        Raises:
            DataError: it is missing, no whole image, or another one than was identified.
        """
        position = self.order[index]
        if self.contents is None:
            return open_image(self.items[position], self.mode)
        hashed, state = (part[position] for part in self.contents)
        return open_image(self.items[position], self.mode, (_state(state), _bytes(hashed)))

    def take(self, rows: Tensor) -> "Images":
        """Return the samples at `rows`, still undecoded."""
        return replace(self, order=[self.order[row] for row in rows.tolist()])

    def identified(self, files: KnownFiles | None) -> "Images":
        """Return the column with the hashes of what all its items hold.

        From here on an image that turns out to be another one is refused as it is read.

        Args:
            files: Knows the hashes of files from earlier runs; None reads every file.

        Raises:
            DataError: an item is missing or cannot be read. The message names it.
        """
        if all(isinstance(item, Path) for item in self.items):
            found = read_contents(self.items) if files is None else files.contents(self.items)
            return replace(self, contents=found)
        hashes = as_hashes([_digest(item) for item in self.items])
        return replace(self, contents=Contents(hashes, torch.zeros(len(hashes), 4).long()))

    def digests(self) -> list[bytes]:
        """Return for each sample a value that only exact copies share."""
        contents = (self if self.contents is not None else self.identified(None)).contents
        assert contents is not None
        return [_bytes(contents.hashes[position]) for position in self.order]

    def fingerprint(self) -> bytes:
        """Hash the contents."""
        return blake2b(self.mode.encode() + b"".join(self.digests()), digest_size=16).digest()


def images_of(items: Sequence[Any], mode: str | None = None) -> Images:
    """Return a column of `items`; its mode is that of the first image if not given."""
    if mode is None:
        mode = "L" if open_image(items[0], None).mode in _GREY_MODES else "RGB"
    return Images(items, mode, range(len(items)))


def named_files(items: Sequence[Any], folder: Path) -> list[Any]:
    """Return items with a path in place of each name of a file, relative to `folder`.

    This is the only way from a name to something that is opened: `open_image` takes no names.
    A name is a text, or `{"bytes", "path"}` without bytes.

    Raises:
        DataError: an item is neither an image nor a name.
    """
    return [_named_file(item, folder) for item in items]


def first_leaving(items: Sequence[Any], within: Path) -> int | None:
    """Return the position of the first path among items that leaves `within`; None without one."""
    paths = [(position, item) for position, item in enumerate(items) if isinstance(item, Path)]
    outside = first_outside([path for _, path in paths], within)
    return None if outside is None else paths[outside][0]


def leaves(where: str, item: Any, within: Path) -> DataError:
    """Return the error over a name, or `{"bytes", "path"}`, that leads out of a folder."""
    name = str(item["path"] if isinstance(item, dict) else item)
    return DataError(
        f"{where} names {name!r}, which leaves the folder {str(within)!r}",
        hint="name a folder that holds all files: within: DIR, beside the path of the source",
    )


def in_short(value: Any) -> str:
    """Return a value of data as a message shows it."""
    text = redacted(repr(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_image(value: object) -> bool:
    """Tell whether `value` is a PIL image, or an image as `datasets` stores it."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def open_image(item: Any, mode: str | None, known: tuple[State, bytes] | None = None) -> Any:
    """Decode one image to a `PIL.Image`, converted to `mode` unless that is None.

    Args:
        item: A path, encoded bytes, `{"bytes", "path"}` with bytes, or a PIL image.
        mode: The colour mode.
        known: State and hash of what the item must hold.

    Raises:
        DataError: the file is missing, not a whole image, or another one. The message names it.
    """
    if is_image(item) and not isinstance(item, dict):
        return item if mode is None or item.mode == mode else item.convert(mode)
    pil = require("PIL.Image", extra="vision")
    with _opened(item) as (file, name):
        with _readable(name, pil), _pictured(file, pil) as image:
            decoded = image.convert(mode or image.mode)
        # Looked at afterwards: what is written into it from here on is not in what was decoded.
        if known is not None and not _holds(file, *known):
            raise DataError(
                f"the image {name!r} is another one than when the data was opened",
                hint="start the command again; what was stored of the old one is not used",
            )
    return decoded


def refuse_unreadable(images: Images) -> None:
    """Look at every image without decoding it, where decoding is left for later.

    Raises:
        DataError: a file is missing or no image. The message names it.
    """
    pil = require("PIL.Image", extra="vision")
    for position in images.order:
        item = images.items[position]
        if isinstance(item, dict | bytes | Path):
            with _opened(item) as (file, name), _readable(name, pil), _pictured(file, pil) as image:
                image.verify()


def image_tensor(image: Any) -> Tensor:
    """Turn a `PIL.Image` into `(C, H, W)`, uint8 for the usual modes."""
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


@contextmanager
def _pictured(source: BinaryIO, pil: ModuleType) -> Iterator[Any]:
    """Open an image of a known format, unless it is so large that Pillow warns of it."""
    with warnings.catch_warnings():
        # Told by the errors below, or of no consequence for the pixels.
        warnings.simplefilter("ignore")
        image = pil.open(source, formats=_formats())
    with image:
        width, height = image.size
        if pil.MAX_IMAGE_PIXELS is not None and width * height > pil.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{width} x {height} are more than {pil.MAX_IMAGE_PIXELS} pixels; make it smaller"
            )
        yield image


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
        with naming(name):
            yield
    except (*_FAULTS, pil.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot read the image {name!r}: {reason}") from error


def _named_file(item: Any, folder: Path) -> Any:
    is_dict = isinstance(item, dict) and is_image(item)
    if isinstance(item, bytes) or (is_image(item) and not is_dict):
        return item
    if is_dict and isinstance(item["bytes"], bytes):
        return item
    name = item["path"] if is_dict and item["bytes"] is None else item
    if isinstance(name, str | Path):
        return folder / name
    raise DataError(f"needs an image or the path of one, got {in_short(item)}")


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
        return _hash(file.getvalue()) == digest
    return is_unchanged(file, state, digest)


def _digest(item: Any) -> bytes:
    if isinstance(item, Path):
        return _bytes(read_contents([item]).hashes[0])
    if is_image(item) and not isinstance(item, dict):
        with naming(str(getattr(item, "filename", "") or "(in memory)")):
            # All that the pixels mean rests on these as well.
            more = (item.mode, item.size, item.getpalette(), item.info.get("transparency"))
            return _hash(repr(more).encode() + bytes(item.tobytes()))
    with _opened(item) as (file, _):
        return _hash(file.read())


def _hash(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=HASH_BYTES).digest()


def _bytes(hashed: Tensor) -> bytes:
    return hashed.numpy().tobytes()


def _state(state: Tensor) -> State:
    size, modified, changed, entry = state.tolist()
    return size, modified, changed, entry
