"""Images as files, encoded bytes or PIL images, decoded one at a time as they are read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import DataError
from finetune.importing import require

_GREY_MODES = {"1", "L", "LA", "I;16", "I", "F"}


@dataclass(frozen=True, slots=True)
class Images:
    """A column of images, none of which is decoded before it is asked for.

    Args:
        items: Each a path, a PIL image, encoded bytes, or the `{"bytes", "path"}` of `datasets`.
        mode: `RGB` or `L`; every image is brought to it.
        order: Positions in `items` of this column's samples.
    """

    items: Sequence[Any]
    mode: str
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        """Decode one image to a `PIL.Image` in the column's mode."""
        return open_image(self.items[self.order[index]], self.mode)

    def take(self, rows: Tensor) -> "Images":
        """Return the samples at `rows`, still undecoded."""
        return Images(self.items, self.mode, [self.order[row] for row in rows.tolist()])

    def digests(self) -> list[bytes]:
        """Return for each sample a value that only exact copies share."""
        return image_digests([self])

    def fingerprint(self) -> bytes:
        """Hash the contents, of files only the names, sizes and times of change."""
        digest = blake2b(self.mode.encode(), digest_size=16)
        for position in self.order:
            digest.update(_identity(self.items[position]))
        return digest.digest()


def images_of(items: Sequence[Any], mode: str | None = None) -> Images:
    """Return a column of `items`; its mode is that of the first image if not given."""
    if mode is None:
        mode = "L" if open_image(items[0], None).mode in _GREY_MODES else "RGB"
    return Images(items, mode, range(len(items)))


def image_digests(columns: Sequence[Images]) -> list[bytes]:
    """Return for each image of all `columns` a value that only exact copies share.

    Files of different sizes cannot be copies, so only those of equal size are read.
    """
    places = [(column.items, position) for column in columns for position in column.order]
    sizes = [_file_size(items[position]) for items, position in places]
    count = Counter(sizes)
    return [
        str(size).encode() if size is not None and count[size] == 1 else _digest(items[position])
        for size, (items, position) in zip(sizes, places, strict=True)
    ]


def is_image(value: object) -> bool:
    """Tell whether `value` is a PIL image, or an image as `datasets` stores it."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def open_image(item: Any, mode: str | None) -> Any:
    """Decode one image to a `PIL.Image`, converted to `mode` unless that is None.

    Raises:
        DataError: the file is missing or not a whole image. The message names it.
    """
    if is_image(item) and not isinstance(item, dict):
        return item if mode is None or item.mode == mode else item.convert(mode)
    pil = require("PIL.Image", extra="vision")
    source, name = _source(item)
    with _readable(name, pil), pil.open(source) as image:
        return image.convert(mode or image.mode)


def refuse_unreadable(images: Images) -> None:
    """Look at every image without decoding it, where decoding is left for later.

    Raises:
        DataError: a file is missing or no image. The message names it.
    """
    pil = require("PIL.Image", extra="vision")
    for position in images.order:
        item = images.items[position]
        if isinstance(item, dict | bytes | str | Path):
            source, name = _source(item)
            with _readable(name, pil), pil.open(source) as image:
                image.verify()


def image_tensor(image: Any) -> Tensor:
    """Turn a `PIL.Image` into `(C, H, W)`, uint8 for the usual modes."""
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


@contextmanager
def _readable(name: str, pil: ModuleType) -> Iterator[None]:
    """Turn what Pillow raises into an error that names the image."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no such image file {name!r}") from error
    except (OSError, ValueError, SyntaxError, StructError, pil.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"cannot read the image {name!r}: {reason}") from error


def _source(item: Any) -> tuple[Any, str]:
    if isinstance(item, dict):
        name = item["path"] or "(in memory)"
        return (BytesIO(item["bytes"]) if item["bytes"] is not None else item["path"]), name
    if isinstance(item, bytes):
        return BytesIO(item), "(in memory)"
    if isinstance(item, str | Path):
        return item, str(item)
    raise DataError(f"needs an image or the path of one, got {item!r}")


def _file_size(item: Any) -> int | None:
    if not isinstance(item, str | Path):
        return None
    try:
        return Path(item).stat().st_size
    except OSError as error:
        raise DataError(f"no such image file {str(item)!r}") from error


def _digest(item: Any) -> bytes:
    return blake2b(_contents(item), digest_size=16).digest()


def _contents(item: Any) -> bytes:
    if is_image(item) and not isinstance(item, dict):
        return f"{item.mode}{item.size}".encode() + bytes(item.tobytes())
    source, name = _source(item)
    try:
        return source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {name!r}: {error.strerror}") from error


def _identity(item: Any) -> bytes:
    if not isinstance(item, str | Path):
        return _digest(item)
    stat = Path(item).stat()
    return f"{item}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode()
