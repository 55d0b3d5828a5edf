"""Read a JSON file of COCO: images by the names of their files, and the boxes of each."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.data.readers.json_lists import read_lists
from finetune.data.table import Column, Listed
from finetune.errors import DataError, FinetuneError, Key, named
from finetune.reading import MAX_JSON_BYTES, read_json

_LISTS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox", "iscrowd"),
    "categories": ("id", "name"),
}
"""The lists of such a file, each with the keys that are read of its entries."""


class FoundCoco(NamedTuple):
    """What a file of COCO holds."""

    columns: dict[str, Column]
    notes: tuple[str, ...]
    """Lines to report to the user."""


def read_coco(path: Path, key: Key) -> FoundCoco:
    """Return the columns `image`, names of files, and `objects`, the boxes of each image.

    Boxes have `bbox`, the name of their category as `label`, and `iscrowd` where it is set. Images
    without boxes have an empty list.

    Args:
        path: The file.
        key: Position of its name in the config.

    Raises:
        DataError: it cannot be read, is no file of COCO, or names an image or category that it
            lacks.
    """
    lists = _lists(path, key)
    images, boxes, categories = (_dicts(lists, name, path, key) for name in _LISTS)
    labels = {_id(one, "id"): one.get("name") for one in categories}
    objects: dict[Any, list[dict[str, Any]]] = {_id(one, "id"): [] for one in images}
    used = set[Any]()
    for number, one in enumerate(boxes):
        image, category = _id(one, "image_id"), _id(one, "category_id")
        place = f"annotations[{number}]"
        if image not in objects:
            raise _lacking(place, one, "image_id", path, key)
        if category not in labels:
            raise _lacking(place, one, "category_id", path, key)
        used.add(category)
        crowd = {"iscrowd": True} if one.get("iscrowd") else {}
        objects[image].append({"bbox": one.get("bbox"), "label": labels[category], **crowd})
    # A dict has one list for an id, so that two images would share their boxes.
    if len(objects) < len(images):
        raise DataError("two of its images have one id", where=str(path), key=key)
    names = [one.get("file_name") for one in images]
    columns: dict[str, Column] = {
        "image": Listed(names, "text"),
        "objects": Listed([*objects.values()], "things"),
    }
    # Only categories with boxes become classes: others of equal names do no harm.
    labels = {category: label for category, label in labels.items() if category in used}
    return FoundCoco(columns, tuple(_on_equal_names(labels)))


def _on_equal_names(labels: Mapping[Any, Any]) -> Iterator[str]:
    """Yield a note for each name that several categories with boxes have."""
    for name in dict.fromkeys(labels.values()):
        alike = [str(category) for category, label in labels.items() if label == name]
        if len(alike) > 1:
            yield (
                f"categories {named(alike)} are all called {name!r}: their boxes are learnt as "
                "one class; other names keep them apart"
            )


def _lists(path: Path, key: Key) -> Mapping[str, Any]:
    """Return the object that a file holds, its lists at least; empty if it holds something else.

    A large file is not read at once: outlines of what is in its boxes are most of it.

    Raises:
        DataError: it cannot be read, is no JSON, or exceeds a limit.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
            return read_lists(path, _LISTS)
        document = read_json(path)
    except FinetuneError as error:
        raise DataError(error.message, where=error.where, hint=error.hint, key=key) from error
    return document if isinstance(document, Mapping) else {}


def _dicts(
    lists: Mapping[str, Any], name: str, path: Path, key: Key
) -> Sequence[Mapping[str, Any]]:
    """Return one of the lists of a document.

    Raises:
        DataError: there is none of that name, or it holds something else.
    """
    found = lists.get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise DataError(
            f"no file of COCO: it has no list {name!r} of objects",
            where=str(path),
            hint="it holds lists 'images', 'annotations' and 'categories'; a table with a line "
            "for each image is {type: jsonl}",
            key=key,
        )
    return found


def _id(entry: Mapping[str, Any], name: str) -> Any:
    """Return an id that can be looked up; None for one that cannot, such as a list."""
    found = entry.get(name)
    return found if isinstance(found, int | str) else None


def _lacking(place: str, entry: Mapping[str, Any], name: str, path: Path, key: Key) -> DataError:
    """Return the error for an annotation of something that is not listed."""
    where = "images" if name == "image_id" else "categories"
    what = f"{name} {entry.get(name)!r}"
    return DataError(f"{place} is of {what}, which is not in {where!r}", where=str(path), key=key)
