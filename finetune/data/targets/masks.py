"""Targets that are masks: a class for each pixel of an image.

Letters: N samples, C channels, H height, W width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from finetune.config.bounds import MAX_PIXEL
from finetune.config.messages import shown
from finetune.config.task_keys import Task
from finetune.data.columns import ends_like_an_image
from finetune.data.images import Images
from finetune.data.media.pixel_classes import PixelClasses
from finetune.data.table import Column, Listed, Numbers, Table
from finetune.errors import DataError, Key

_KEY: Key = ("data", "target")
_MOST_CLASSES = 1024
"""Most classes that are found in masks: more numbers are no classes, such as depths."""
_SIZES_READ = 200
"""Number of image headers that are read for their sizes: opening a file takes some 0.1 ms."""


def encode_masks(
    column: Column,
    table: Table,
    name: str,
    task: Task,
    classes: tuple[str, ...] | None,
    *,
    skips: bool = False,
) -> tuple[Images | Numbers, tuple[str, ...], tuple[str, ...]]:
    """Return masks as classes of pixels, the names of the classes, and notes.

    Masks of files are encoded when they are read.

    Args:
        column: The masks: images, or arrays `(N, H, W)` of whole numbers.
        table: All columns, among them the images that the masks are of.
        name: Name of the column.
        task: Says which classes there are, and which pixels are ignored.
        classes: Classes of the run; None to find them in the masks if the config names none.
        skips: Whether a mask that cannot be read is passed over while classes are looked for.

    Raises:
        DataError: the column holds no masks, masks of another size, or a number of no class.
    """
    ignored, chosen = task.ignored_number, task.named_classes
    masks = column if isinstance(column, Images) else _arrays(column, table, name)
    notes: tuple[str, ...] = ()
    if chosen is None and classes is None:
        each = _readable(masks, table, skips=skips)
        chosen, notes = _found(each, len(masks), name, ignored)
        meaning = PixelClasses.of(chosen, ignored, named=False)
    else:
        meaning = PixelClasses.of(chosen or classes or (), ignored, named=chosen is not None)
        chosen = chosen or classes or ()
    if isinstance(masks, Images):
        return replace(masks, classes=meaning), chosen, notes
    _refuse_other_sizes(masks.values, table, name)
    rows = (
        meaning.encoded(mask, f"the mask in {table.place(row)}")
        for row, mask in enumerate(masks.values)
    )
    # As int64 like all targets of whole numbers, which losses take.
    return Numbers(torch.stack([*rows]).long()), chosen, notes


def _arrays(column: Column, table: Table, name: str) -> Numbers:
    """Return masks in arrays as whole numbers `(N, H, W)`.

    Raises:
        DataError: the column holds something else.
    """
    if not isinstance(column, Numbers):
        cells = column.values if isinstance(column, Listed) else ()
        # Of names of files the one at fault, such as an empty cell.
        row = next((n for n, cell in enumerate(cells) if not ends_like_an_image(cell)), 0)
        held = shown(column[row]) if len(column) else "nothing"
        raise DataError(
            f"column {name!r} holds {held} in {table.place(row)}; a mask is an image file, such as "
            "a PNG in grey or with a palette, or an array (H, W) of whole numbers",
            key=_KEY,
        )
    values = column.values
    if values.ndim == 4 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.ndim != 3:
        raise DataError(
            f"column {name!r} holds {tuple(values.shape[1:])} numbers a sample, a mask has one "
            "for each pixel (H, W)",
            key=_KEY,
        )
    is_mask = (values >= 0) & (values <= MAX_PIXEL)
    if values.is_floating_point():
        is_mask &= values == values.round()
    if not bool(is_mask.all()):
        row = int((~is_mask).flatten(1).any(1).nonzero()[0])
        raise DataError(
            f"column {name!r} holds {values[row][~is_mask[row]][0].item():g} in "
            f"{table.place(row)}; a mask has whole numbers from 0 to {MAX_PIXEL}",
            key=_KEY,
        )
    # `MAX_PIXEL` is the largest number of this type.
    return Numbers(values.to(torch.int16))


def _found(
    masks: Iterable[Tensor], count: int, name: str, ignored: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the numbers that `count` masks hold as classes, and a note on them.

    Raises:
        DataError: there is one class only, or more than any network tells apart.
    """
    is_there = torch.zeros(MAX_PIXEL + 1, dtype=torch.bool)
    num_read = 0
    for mask in masks:
        # Marked in a table: `unique` would sort the pixels of every mask.
        is_there[mask.long().flatten()] = True
        num_read += 1
    if ignored is not None:
        is_there[ignored] = False
    found = is_there.nonzero().flatten().tolist()
    if len(found) > _MOST_CLASSES:
        raise DataError(
            f"the masks in column {name!r} hold {len(found):,} numbers from {found[0]} to "
            f"{found[-1]}, more than {_MOST_CLASSES:,}: they are no classes",
            hint="task.classes names the classes, from number 0 on",
            key=_KEY,
        )
    if len(found) < 2:
        only = f"all {found[0]}" if found else "all without a class"
        but = "" if ignored is None else f" but for ignored ones of {ignored}"
        raise DataError(
            f"the pixels of all masks in column {name!r} are {only}{but}, so there is nothing to "
            "learn",
            hint=None
            if ignored is None
            else f"if {ignored} is a class: task: {{ignore_index: null}}",
            key=_KEY,
        )
    note = (
        f"column {name!r}: {len(found)} numbers in {num_read:,} masks are the classes"
        f"{'' if num_read == count else f' ({count - num_read:,} cannot be read)'}; "
        "task.classes: [...] names them, and spares reading all masks at every start"
    )
    return tuple(map(str, found)), (note,)


def _readable(masks: Images | Numbers, table: Table, *, skips: bool) -> Iterator[Tensor]:
    """Yield every mask, with the numbers that its pixels have; leave out unreadable ones if asked.

    Raises:
        DataError: a mask cannot be read, and is not left out. The message names its row.
    """
    for row in range(len(masks)):
        try:
            mask = masks[row]
        except DataError as error:
            if skips:
                continue
            error.message += f", in {table.place(row)}"
            raise
        yield mask


def _refuse_other_sizes(masks: Tensor, table: Table, name: str) -> None:
    """Raise `DataError` if masks in arrays differ in size from their images."""
    size = tuple(masks.shape[1:])
    for image, column in table.columns.items():
        if image == name:
            continue
        if isinstance(column, Numbers) and column.values.ndim == 4:
            found = {0: tuple(column.values.shape[2:])}
        elif isinstance(column, Images) and column.mode != "mask":
            # By headers, before EXIF turns an image: height and width may be exchanged.
            count = min(len(column), _SIZES_READ)
            found = {row: tuple(column.header(row).size) for row in range(count)}
            size = tuple(sorted(size))
            found = {row: tuple(sorted(one)) for row, one in found.items()}
        else:
            continue
        row = next((row for row, one in found.items() if one != size), None)
        if row is not None:
            raise DataError(
                f"the mask in column {name!r} is of {tuple(masks.shape[1:])} pixels, its image in "
                f"column {image!r} of {found[row]}, in {table.place(row)}",
                key=_KEY,
            )
