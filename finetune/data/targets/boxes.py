"""Targets that are boxes in an image, each with a class, as COCO writes them.

Letters: N images, K boxes of the image with the most of them.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.data.images import Images
from finetune.data.ragged import Ragged
from finetune.data.table import Column, Listed, Numbers, Table, and_more
from finetune.errors import DataError, Key
from finetune.models.detectors import NO_BOX

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2 of a box, in pixels."""
_KEY: Key = ("data", "target")
_CLASS_KEYS = ("label", "category", "category_id")
_SIZES_READ = 200
"""Number of image headers that are read for their sizes: opening a file takes some 0.1 ms."""
_BEYOND = 1.05
"""Share of an image's side that a box may reach to: annotators round, and draw beyond the edge."""
_FORM = "a list with {bbox: [x, y, width, height], label: ...} for each box of the image"


@dataclass(frozen=True, slots=True)
class FoundBoxes:
    """The boxes of all images, before labels are numbers."""

    corners: list[list[Corners]]
    """x1, y1, x2, y2 of each box, by image."""
    labels: list[list[str]]
    notes: tuple[str, ...]
    """Lines to report to the user."""


def boxes_of(column: Column, table: Table, name: str) -> FoundBoxes:
    """Return the boxes that the cells of a column hold.

    Args:
        column: A list of boxes for each image, also one written as JSON; or one dict of lists, as
            the `datasets` library has them.
        table: All columns, among them the images that the boxes are of.
        name: Name of the column.

    Raises:
        DataError: a cell holds no boxes, or they are beyond their image.
    """
    cells = column.values if isinstance(column, Listed) else _empty_lists(column)
    rows = [_read(cell, name, table, row) for row, cell in enumerate(cells)]
    kept = [[one for one in boxes if one.reason is None] for boxes in rows]
    if not any(kept):
        raise DataError(f"no image has a box in column {name!r}", key=_KEY)
    corners = [[one.corners for one in boxes] for boxes in kept]
    _refuse_beyond(corners, table, name)
    notes = (_on_counts(corners, name), *_on_left_out(rows, name, table))
    return FoundBoxes(corners, [[one.label for one in boxes] for boxes in kept], notes)


def _empty_lists(column: Column) -> list[list[Any] | None]:
    """Return the cells of a column that is read as numbers, since all its lists are empty."""
    is_empty = isinstance(column, Numbers) and column.values.shape[1:] == (0,)
    return [[] if is_empty else None for _ in range(len(column))]


class _Read(NamedTuple):
    """A box of a cell."""

    corners: Corners
    label: str
    reason: str | None
    """The reason why the box is left out; None if it is used."""


def _read(cell: Any, name: str, table: Table, row: int) -> list[_Read]:
    """Return the boxes of a cell; raise `DataError` if it holds something else."""
    entries = _entries(cell)
    if entries is None:
        raise _no_boxes(cell, name, table.place(row))
    found = []
    for entry in entries:
        box, label = _box(entry), _label(entry)
        if box is None or label is None:
            raise _no_boxes(entry, name, table.place(row))
        is_flat = box[2] <= box[0] or box[3] <= box[1]
        reason = "of a crowd (iscrowd)" if entry.get("iscrowd") else None
        found.append(_Read(box, label, reason or ("without an area" if is_flat else None)))
    return found


def _on_left_out(rows: Sequence[Sequence[_Read]], name: str, table: Table) -> Iterator[str]:
    """Yield a note for each reason why boxes are left out."""
    found: dict[str, list[int]] = {}
    for row, boxes in enumerate(rows):
        for one in boxes:
            if one.reason is not None:
                found.setdefault(one.reason, []).append(row)
    for reason, where in found.items():
        first = table.place(where[0])
        yield f"column {name!r}: {len(where)} boxes {reason} are left out, the first in {first}"


def as_rows(corners: Sequence[Sequence[Corners]], classes: Ragged) -> Numbers:
    """Return boxes as `(N, K, 5)`: x1, y1, x2, y2, class; class -1 in rows without a box.

    Args:
        corners: Corners of the boxes of each image.
        classes: Number of the class of each.
    """
    values = torch.zeros(len(corners), max(map(len, corners)), 5)
    values[:, :, 4] = NO_BOX
    for row, boxes in enumerate(corners):
        if boxes:
            values[row, : len(boxes), :4] = torch.tensor(boxes)
            values[row, : len(boxes), 4] = classes[row].values.float()
    return Numbers(values)


def are_boxes(values: Any) -> bool:
    """Tell whether a sample's value is boxes with classes, floats `(K, 5)`."""
    is_matrix = isinstance(values, Tensor) and values.ndim == 2 and values.is_floating_point()
    return is_matrix and values.shape[1] == 5


def with_corners(boxes: Tensor, corners: Tensor) -> Tensor:
    """Return boxes `(K, 5)` with other corners, without those that lost their area.

    Args:
        boxes: The boxes before they moved.
        corners: The new corners of those that are there, in their order.
    """
    classes = boxes[boxes[:, 4] != NO_BOX, 4]
    is_left = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    # As many rows as before: samples of one batch have one shape.
    result = torch.zeros_like(boxes)
    result[:, 4] = NO_BOX
    count = int(is_left.sum())
    result[:count, :4], result[:count, 4] = corners[is_left], classes[is_left]
    return result


def corners_of(boxes: Tensor) -> Tensor:
    """Return the corners x1, y1, x2, y2 of the boxes that are there, of `(K, 5)`."""
    return boxes[boxes[:, 4] != NO_BOX, :4]


def _entries(cell: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the boxes of a cell as dicts; None for a cell that holds something else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        # Python's reader gives up on a cell of a thousand brackets inside each other.
        except (ValueError, RecursionError):
            return None
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, Mapping):
        # One dict of lists of equal lengths, a box for each place in them.
        lists = {key: values for key, values in cell.items() if isinstance(values, list | tuple)}
        if "bbox" not in lists or len({*map(len, lists.values())}) != 1:
            return None
        cell = [
            dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)
        ]
    is_list = isinstance(cell, list | tuple) and all(isinstance(one, Mapping) for one in cell)
    return cell if is_list else None


def _box(entry: Mapping[str, Any]) -> Corners | None:
    """Return the corners of a box; None if it has none."""
    given: Any = entry.get("bbox")
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, list | tuple) or len(given) != 4:
        return None
    # `type`: true of JSON is an int to `isinstance`. Python's JSON also reads NaN and Infinity.
    if not all(type(one) in (int, float) and math.isfinite(one) for one in given):
        return None
    x, y, width, height = map(float, given)
    return x, y, x + width, y + height


def _label(entry: Mapping[str, Any]) -> str | None:
    """Return the label of a box: text, or a whole number; None if it has none."""
    label = next((entry[key] for key in _CLASS_KEYS if key in entry), None)
    is_label = isinstance(label, str) or type(label) is int
    return str(label) if is_label and str(label).strip() else None


def _no_boxes(value: Any, name: str, place: str) -> DataError:
    """Return the error for a cell, or a box in it, that is none."""
    return DataError(
        f"column {name!r} holds {shown(value)} in {place}; needed is {_FORM}", key=_KEY
    )


def _on_counts(corners: Sequence[Sequence[Corners]], name: str) -> str:
    """Return a note on how many boxes there are."""
    empty = sum(not boxes for boxes in corners)
    without = f", {empty} of them without any" if empty else ""
    count = sum(map(len, corners))
    return f"column {name!r}: {count:,} boxes in {len(corners):,} images{without}"


def _refuse_beyond(corners: Sequence[Sequence[Corners]], table: Table, name: str) -> None:
    """Raise `DataError` if boxes are no pixels of their images."""
    # Hardly any images have all their boxes within the first pixel: these are shares of the sides.
    if all(max(box) <= 1 for boxes in corners for box in boxes):
        raise DataError(
            f"all boxes in column {name!r} are from 0 to 1; they are counted in pixels",
            hint="multiply x and width by the width of the image, y and height by its height",
            key=_KEY,
        )
    for column in table.columns.values():
        sizes = _sizes(column)
        rows = [row for row, size in sizes.items() if _is_beyond(corners[row], size)]
        if rows:
            row = rows[0]
            worst = max(corners[row], key=lambda box: max(box[2:]))
            raise DataError(
                f"column {name!r} has a box from {worst[:2]} to {worst[2:]} in "
                f"{table.place(row)}{and_more(len(rows) - 1)}, and the image has "
                f"{' x '.join(map(str, sizes[row]))} pixels",
                hint="bbox: [x, y, width, height], not the corners of a box",
                key=_KEY,
            )


def _sizes(column: Column) -> dict[int, tuple[int, int]]:
    """Return width and height of the first images of a column, by row; empty for no images."""
    if isinstance(column, Images) and column.mode != "mask":
        sizes = {}
        for row in range(min(len(column), _SIZES_READ)):
            # One that cannot be read is told when it is read, or skipped.
            with suppress(DataError):
                header = column.header(row)
                sizes[row] = header.size[::-1] if header.lies else header.size
        return sizes
    if isinstance(column, Numbers) and column.values.ndim == 4:
        height, width = column.values.shape[2:]
        return dict.fromkeys(range(min(len(column), _SIZES_READ)), (width, height))
    return {}


def _is_beyond(boxes: Sequence[Corners], size: tuple[int, int]) -> bool:
    """Tell whether a box reaches far beyond its image."""
    width, height = size
    return any(
        box[2] > _BEYOND * width + 1
        or box[3] > _BEYOND * height + 1
        or min(box[:2]) < -(_BEYOND - 1) * max(size) - 1
        for box in boxes
    )
