"""A column of images: files, encoded bytes or PIL images, each decoded when it is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from torch import Tensor

from finetune.data.hashes.item_contents import ItemContents, contents_of
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.media.decoding import (
    Header,
    digest_of,
    hash_bytes,
    mask_tensor,
    name_of,
    open_image,
    read_header,
)
from finetune.data.media.pixel_classes import PixelClasses
from finetune.data.media.pixels import PLAIN_RULES, Mode, PixelRules
from finetune.errors import DataError

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
        classes: What the numbers of masks mean; None to leave them as they are.
    """

    items: Sequence[Any]
    mode: Mode
    order: Sequence[int]
    contents: ItemContents | None = None
    rules: PixelRules = PLAIN_RULES
    is_found: bool = False
    refuses_colour: bool = False
    classes: PixelClasses | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        """Return one image as a `PIL.Image` in the column's mode, a mask as a tensor `(H, W)`.

        Raises:
            DataError: it is missing, incomplete, or differs from the one that was identified; or a
                pixel of a mask is of no class.
        """
        position = self.order[index]
        item = self.items[position]
        # Before the image is read as grey, which does not tell whether it had colour.
        if self.refuses_colour:
            self._refuse_colour(item)
        # Without hashes, as for prediction, an image is read as it is now.
        known = None if self.contents is None else partial(self.contents.of_file, position)
        image = open_image(item, self.mode, known, rules=self.rules)
        if self.mode != "mask":
            return image
        mask = mask_tensor(image)
        return mask if self.classes is None else self._encoded(mask, index)

    def raw(self, index: int) -> Any:
        """Return one image as it was handed in: one of the `items`."""
        return self.items[self.order[index]]

    def _encoded(self, mask: Tensor, index: int) -> Tensor:
        """Return a mask as the class of each pixel; raise for a number that is no class."""
        assert self.classes is not None
        return self.classes.encoded(mask, f"the mask {self.name(index)!r}")

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
        return replace(self, contents=self._read(files))

    def digests(self) -> list[bytes]:
        """Return a digest of each sample, which identifies it.

        It is a hash of its contents, or of name and size where contents are read later.
        """
        contents = self.contents or self._read(None)
        return self._with_rules(contents.identities(self.order))

    def fingerprint(self) -> bytes:
        """Return a hash of the contents and of how they are read; all files are read for it."""
        contents = self.contents or self._read(None)
        contents.complete(lambda _: None)
        hashes = self._with_rules(contents.hashes(self.order))
        read_as = f"{_VERSION} {self.mode} {self.rules}"
        # Without classes as before, so that rows of older runs are still used.
        read_as += f" {self.classes}" if self.classes is not None else ""
        return blake2b(read_as.encode() + b"".join(hashes), digest_size=16).digest()

    def _read(self, files: KnownFiles | None) -> ItemContents:
        """Return the contents of all items, read now."""
        return contents_of(self.items, files, "image", digest_of)

    def _with_rules(self, hashes: list[bytes]) -> list[bytes]:
        """Return hashes that differ if other reading rules make other pixels."""
        # With the default rules the hash of the file alone identifies the pixels.
        if self.rules == PLAIN_RULES:
            return hashes
        rules = repr(self.rules).encode()
        return [hash_bytes(rules + hashed) for hashed in hashes]


def images_of(
    items: Sequence[Any], mode: Mode | None = None, rules: PixelRules | None = None
) -> Images:
    """Return a column of `items`; without `mode` the mode is still to be found from headers."""
    found = mode is None
    return Images(
        items, mode or "RGB", range(len(items)), rules=rules or PLAIN_RULES, is_found=found
    )
