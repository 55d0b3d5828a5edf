"""A column of images: files, encoded bytes or PIL images, each decoded when it is read."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.contents import Contents, KnownFiles, as_hashes, read_contents
from finetune.data.decoding import (
    Header,
    digest_of,
    hash_bytes,
    is_image,
    mask_tensor,
    name_of,
    open_image,
    read_header,
)
from finetune.data.item_contents import ItemContents
from finetune.data.pixels import PLAIN_RULES, Mode, PixelRules
from finetune.errors import DataError
from finetune.reading import first_outside
from finetune.redaction import redacted

_VERSION = 2
"""Version of how pixels are decoded; bump it so that rows stored by older code are not used."""


@dataclass(frozen=True, slots=True)
class Images:
    """A column of images, each of which is decoded only when it is read.

    Args:
        items: For each image the path of a file, a PIL image, encoded bytes, or the
            `{"bytes", "path"}` of `datasets` with bytes. Names in the data become paths only
            through `named_files`.
        mode: `RGB` or `L`, to which every image is converted; or `mask` for classes of pixels.
        order: Positions in `items` of this column's samples.
        contents: What is known of the contents of the items, once they were identified.
        rules: Reading rules of the source.
        is_found: Whether the mode was found from image headers, not named by the config.
        refuses_colour: Whether an image in colour is an error, since the column counts as grey but
            not all headers were read.
    """

    items: Sequence[Any]
    mode: Mode
    order: Sequence[int]
    contents: ItemContents | None = None
    rules: PixelRules = PLAIN_RULES
    is_found: bool = False
    refuses_colour: bool = False

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        """Return one image as a `PIL.Image` in the column's mode, a mask as a tensor `(H, W)`.

        Raises:
            DataError: it is missing, incomplete, or differs from the one that was identified.
        """
        position = self.order[index]
        item = self.items[position]
        if self.refuses_colour:
            self._refuse_colour(item)
        # Without hashes, as for prediction, an image is read as it is now.
        known = None if self.contents is None else partial(self.contents.of_file, position)
        image = open_image(item, self.mode, known, rules=self.rules)
        return mask_tensor(image) if self.mode == "mask" else image

    def _refuse_colour(self, item: Any) -> None:
        """Raise if an image has colour."""
        if read_header(item).is_colour:
            raise DataError(
                f"the image {name_of(item)!r} has colour, all that were looked at before are grey",
                hint="channels: rgb, or channels: grey, beside the path of the source",
            )

    def header(self, index: int) -> Header:
        """Return the header of one image.

        Raises:
            DataError: it is missing, or no image.
        """
        return read_header(self.items[self.order[index]])

    def name(self, index: int) -> str:
        """Return the name of one image, for messages."""
        return name_of(self.items[self.order[index]])

    def take(self, rows: Tensor) -> "Images":
        """Return the samples at `rows`, not decoded."""
        return replace(self, order=[self.order[row] for row in rows.tolist()])

    def identified(self, files: KnownFiles | None) -> "Images":
        """Return the column with the content hashes of all its items.

        From then on, an image that has changed is refused when it is read.

        Args:
            files: Hashes of files from earlier runs; None to read every file.

        Raises:
            DataError: an item is missing or cannot be read. The message names it.
        """
        return replace(self, contents=contents_of(self.items, files))

    @property
    def goes_by_names(self) -> bool:
        """Whether name and size identify a sample, not its contents."""
        return self.contents is not None and self.contents.names is not None

    @property
    def is_identified(self) -> bool:
        """Whether the contents of all items are known."""
        return self.contents is not None and self.contents.is_complete

    def identify(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Read all files whose contents are not known yet; `tell` receives lines for the user.

        Raises:
            DataError: a file cannot be read, or differs from when it was read before.
        """
        if self.contents is not None:
            self.contents.complete(tell)

    def digests(self) -> list[bytes]:
        """Return a digest of each sample, which identifies it.

        It is a hash of its contents, or of name and size where contents are read later.
        """
        contents = self.contents or contents_of(self.items)
        if (names := contents.names) is not None:
            return self._with_rules([names[position] for position in self.order])
        return self._with_rules([contents.hash_of(position) for position in self.order])

    def fingerprint(self) -> bytes:
        """Return a hash of the contents and of how they are read; all files are read for it."""
        contents = self.contents or contents_of(self.items)
        contents.complete(lambda _: None)
        hashes = self._with_rules([contents.hash_of(position) for position in self.order])
        read_as = f"{_VERSION} {self.mode} {self.rules}"
        return blake2b(read_as.encode() + b"".join(hashes), digest_size=16).digest()

    def _with_rules(self, hashes: list[bytes]) -> list[bytes]:
        """Return hashes that differ if other reading rules make other pixels."""
        # With the default rules the hash of the file alone identifies the pixels.
        if self.rules == PLAIN_RULES:
            return hashes
        rules = repr(self.rules).encode()
        return [hash_bytes(rules + hashed) for hashed in hashes]


def contents_of(items: Sequence[Any], files: KnownFiles | None = None) -> ItemContents:
    """Return the contents of all items, read now.

    Args:
        items: Paths, or images in memory.
        files: Hashes of files from earlier runs; None to read every file.

    Raises:
        DataError: an item is missing or cannot be read. The message names it.
    """
    if is_of_files(items):
        found = read_contents(items) if files is None else files.contents(items)
        return ItemContents.of(found)
    # Items in memory have no state that could tell of a change; their hash is compared when read.
    hashes = as_hashes([digest_of(item) for item in items])
    return ItemContents.of(Contents(hashes, torch.zeros(len(hashes), 4).long()))


def is_of_files(items: Sequence[Any]) -> bool:
    """Tell whether all items are paths of files."""
    return all(isinstance(item, Path) for item in items)


def images_of(
    items: Sequence[Any], mode: Mode | None = None, rules: PixelRules | None = None
) -> Images:
    """Return a column of `items`; without `mode` the mode is still to be found from headers."""
    found = mode is None
    return Images(
        items, mode or "RGB", range(len(items)), rules=rules or PLAIN_RULES, is_found=found
    )


def named_files(items: Sequence[Any], folder: Path) -> list[Any]:
    """Return items with each file name replaced by its path, relative to `folder`.

    Only here does a name become something that can be opened: `open_image` takes no names.
    A name is a text, or `{"bytes", "path"}` without bytes.

    Raises:
        DataError: an item is neither an image nor a name.
    """
    return [_named_file(item, folder) for item in items]


def first_leaving(items: Sequence[Any], within: Path) -> int | None:
    """Return the position of the first path among items that is outside `within`, or None."""
    paths = [(position, item) for position, item in enumerate(items) if isinstance(item, Path)]
    outside = first_outside([path for _, path in paths], within)
    return None if outside is None else paths[outside][0]


def leaves(where: str, item: Any, folder: Path, within: Path) -> DataError:
    """Return the error for a name, or a `{"bytes", "path"}`, that leads out of a folder.

    Args:
        where: Place of the name, for messages.
        item: The name.
        folder: Folder that names are relative to.
        within: Folder that names must not leave.
    """
    name = str(item["path"] if isinstance(item, dict) else item)
    hint = "name a folder that holds all files: within: DIR, beside the path of the source"
    # A frequent misunderstanding: `within` sets a bound, and is not where names start.
    if folder != within and (within / name).exists():
        written = os.path.relpath(within / name, folder)
        return DataError(
            f"{where} names {name!r}, which is looked for in the folder {str(folder)!r}, and lies "
            f"in {str(within)!r}",
            hint=f"within only bounds where files may lie: write {written!r}, the way from the "
            "folder of the table",
        )
    return DataError(
        f"{where} names {name!r}, which leaves the folder {str(within)!r}: it is "
        f"{str(folder / name)!r}",
        hint=hint,
    )


def missing_file(images: Images, place: Callable[[int], str], folder: Path) -> DataError | None:
    """Return the error for the first image file that does not exist, or None if all do.

    Args:
        images: The column.
        place: Returns the place of a sample, for messages.
        folder: Folder that file names are relative to.
    """
    for index, position in enumerate(images.order):
        item = images.items[position]
        if isinstance(item, Path) and not item.exists():
            return DataError(
                f"no such image file {str(item)!r}, which {place(index)} names",
                hint=f"names are relative to the folder {str(folder.resolve())!r}",
            )
    return None


def in_short(value: Any) -> str:
    """Return a value of the data as a short text for messages, never a whole sample or bytes."""
    match value:
        case bytes() | bytearray():
            return f"{len(value):,} bytes"
        case type():
            return value.__name__
        case dict():
            return f"a mapping of {', '.join(repr(str(key)[:20]) for key in list(value)[:5])}"
        case str() | int() | float() | None:
            # Cut before `repr`: a text may be a whole book.
            text = redacted(repr(value[:1000] if isinstance(value, str) else value))
        case list() | tuple() if len(value) <= 4 and all(type(v) in (int, float) for v in value):
            text = repr(value)
        case list() | tuple():
            return f"a list of {len(value):,}"
        case _:
            shape = getattr(value, "shape", None)
            name = type(value).__name__
            return name if shape is None else f"{name} of shape {tuple(shape)}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _named_file(item: Any, folder: Path) -> Any:
    """Return one item, with a name replaced by its path; raise if it is neither image nor name."""
    # `datasets` keeps an image as bytes, or as nothing but a path; only the former is whole.
    is_dict = isinstance(item, dict) and is_image(item)
    if isinstance(item, bytes) or (is_image(item) and not is_dict):
        return item
    if is_dict and isinstance(item["bytes"], bytes):
        return item
    name = item["path"] if is_dict and item["bytes"] is None else item
    if isinstance(name, str | Path):
        return folder / name
    raise DataError(f"needs an image or the path of one, got {in_short(item)}")
