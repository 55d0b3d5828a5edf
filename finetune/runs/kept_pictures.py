"""Pictures of a run's validation samples, kept in `pictures.json` for the page about the run."""

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from finetune import disk
from finetune.reading import read_own_json
from finetune.runs.own_files import PICTURES

MOST_BYTES, MOST_BYTES_OF_ALL = 400_000, 2_000_000
"""Of one picture, and of all of a run: a page must open at once."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 100


class KeptPicture(NamedTuple):
    """A picture of the weights in use."""

    name: str
    """Such as `validation/confusion`."""
    title: str
    """What it shows, for people who hear it."""
    step: int
    width: int
    height: int
    png: bytes

    @property
    def source(self) -> str:
        """The picture as the address of an image on a page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def as_document(pictures: Iterable[KeptPicture]) -> dict[str, Any]:
    """Return pictures as JSON data; names of those that are too large are in `left_out`."""
    kept: list[dict[str, Any]] = []
    left_out: list[str] = []
    total = 0
    for picture in pictures:
        size = len(picture.png)
        if size > MOST_BYTES or total + size > MOST_BYTES_OF_ALL:
            left_out.append(picture.name)
            continue
        total += size
        kept.append(picture._asdict() | {"png": base64.b64encode(picture.png).decode()})
    return {"pictures": kept, "left_out": left_out}


def read_pictures(run: Path) -> tuple[list[KeptPicture], list[str]]:
    """Return the pictures of a run and the names of those left out.

    A run folder may come from a stranger: what is no picture of these bounds is passed over.
    """
    try:
        if not disk.is_file(run / PICTURES):
            return [], []
        document = read_own_json(run / PICTURES)
        entries, left_out = document["pictures"][:_MOST], document["left_out"][:_MOST]
        found = [picture for entry in entries if (picture := _picture(entry)) is not None]
        return found, [str(name) for name in left_out]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], []


def _picture(entry: Any) -> KeptPicture | None:
    """Return an entry of the document as a picture; None if it is none."""
    try:
        name, title = str(entry["name"]), str(entry["title"])
        step, width, height = (int(entry[key]) for key in ("step", "width", "height"))
        png = base64.b64decode(entry["png"], validate=True)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error):
        return None
    is_one = png.startswith(_PNG) and len(png) <= MOST_BYTES
    return KeptPicture(name, title, step, width, height, png) if is_one else None
