"""Columns that the loss takes and the network does not: masks, tags, further numbers.

Letters: N samples, H height, W width.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.messages import shown
from finetune.config.task_list_keys import AnyTask as Task, TaskList
from finetune.config.transform_keys import VisionTransform
from finetune.data.cells import read_cells
from finetune.data.gaps import refuse_gaps
from finetune.data.images import Images
from finetune.data.ragged import Ragged
from finetune.data.samples import IGNORED, OfLoss, Prepared
from finetune.data.table import Column, Listed, Numbers, Table
from finetune.errors import DataError, Key, did_you_mean

_KEY: Key = ("data", "loss_columns")
_MOVING_ALONE = frozenset({"RandAugment", "AutoAugment", "TrivialAugmentWide", "AugMix"})
"""Classes of torchvision that move pixels and refuse to move anything along."""
_MOVING = _MOVING_ALONE | frozenset(
    {
        *("RandomHorizontalFlip", "RandomVerticalFlip", "RandomCrop", "RandomResizedCrop"),
        *("RandomRotation", "RandomAffine", "RandomPerspective", "ElasticTransform"),
        *("RandomZoomOut", "RandomResize", "RandomShortestSize", "ScaleJitter"),
        *("CenterCrop", "Pad"),
    }
)
"""Classes of torchvision that move pixels, so that a mask must move with the image."""
_RESIZING = frozenset({"Resize"})
"""A further one that boxes must move with: places in an image of another size are other ones."""


def refuse_idle_loss_columns(config: DataConfig, task: Task) -> None:
    """Raise `DataError` if no loss would read the columns of `data.loss_columns`."""
    if config.loss_columns and not task.has_own_loss:
        raise DataError(
            "no loss reads them: a loss or task of your own does",
            hint="task.losses: [{type: import, path: ...}], or leave them out",
            key=_KEY,
        )


def mask_columns(config: DataConfig, task: Task, target: str | None) -> set[str]:
    """Return the columns for the loss that are masks if they hold images, or names of images.

    Texts of any other column are labels, also where they look like names of files.
    """
    moved = {name for _, node in _vision_nodes(config) for name in node.with_ or ()}
    # A column that moves with an image is a mask, whatever the task learns.
    is_free = task.learns in ("mask", "any") or target in moved
    listed = task.targets if isinstance(task, TaskList) else ()
    named = {*config.loss_columns, *([target] if target is not None and is_free else [])}
    # A list of tasks learns classes and numbers; a mask is learnt by a single task.
    return named - set(listed)


def refuse_unknown_companions(
    config: DataConfig, inputs: Sequence[str], target: str | None
) -> None:
    """Raise `DataError` if a transform moves a column along that is not there, or its own."""
    known = [*inputs, *([] if target is None else [target]), *config.loss_columns]
    for key, node in _vision_nodes(config):
        for name in node.with_ or ():
            if name not in known or name == (node.column or inputs[0]):
                told = f"no column {name!r} to move along; there are: {', '.join(known)}"
                own = f"column {name!r} is the image itself"
                hint = did_you_mean(name, known)
                raise DataError(told if name not in known else own, hint=hint, key=(*key, "with"))


def masks_among(columns: Mapping[str, OfLoss], inputs: Mapping[str, Prepared]) -> list[str]:
    """Return the columns for the loss that hold masks: images, and arrays as large as an image.

    Args:
        columns: All columns for the loss.
        inputs: The columns of the network before any step.
    """
    # Numbers of another size may be anything, such as the tokens of several captions.
    sizes = {_size(column) for column in inputs.values()} - {None}
    return [
        name
        for name, column in columns.items()
        if isinstance(column, Images) or (_is_matrix(column) and _size(column) in sizes)
    ]


def refuse_unmoved_masks(config: DataConfig, masks: Sequence[str]) -> None:
    """Raise `DataError` if a transform moves pixels of an image and not those of its mask."""
    for key, node, left in _unmoved(config, masks):
        raise DataError(
            f"{node.type} moves the pixels of the image and not those of its mask {left[0]!r}",
            hint=_remedy(node, masks),
            key=key,
        )


def refuse_unmoved_boxes(config: DataConfig, boxes: str | None) -> None:
    """Raise `DataError` if a transform moves an image, or changes its size, and not its boxes.

    Args:
        config: `data:` of the config.
        boxes: Column of the boxes that are learnt; None without any.
    """
    moving = _MOVING | _RESIZING
    for key, node, left in _unmoved(config, [] if boxes is None else [boxes], moving):
        raise DataError(
            f"{node.type} moves the pixels of the image and not its boxes {left[0]!r}",
            hint=_remedy(node, left),
            key=key,
        )


def notes_on_unmoved(
    config: DataConfig, columns: Mapping[str, OfLoss], masks: Sequence[str]
) -> list[str]:
    """Return a note for each transform that leaves behind what may be places in the image.

    Args:
        config: `data:` of the config.
        columns: All columns for the loss.
        masks: Those that hold masks, which none leaves behind.
    """
    places = [
        name
        for name, column in columns.items()
        if name not in masks and (_is_matrix(column) or _holds_points(column))
    ]
    notes = [
        f"{node.type} moves the pixels of the image and leaves {', '.join(map(repr, left))} as it "
        f"is; for boxes, points or masks of the image: {_remedy(node, left)}"
        for _, node, left in _unmoved(config, places)
    ]
    return [*dict.fromkeys(notes)]


def changes_what_is_seen(config: DataConfig) -> bool:
    """Tell whether evaluation shows the network another part of an image than the whole of it."""
    own = config.evaluation_transforms
    # Without steps of its own, evaluation leaves the random ones out.
    moving = _MOVING if own is not None else {"CenterCrop", "Pad"}
    nodes = config.transforms or () if own is None else own
    return any(isinstance(node, VisionTransform) and node.type in moving for node in nodes)


def _unmoved(
    config: DataConfig, names: Sequence[str], moving: Collection[str] = _MOVING
) -> Iterator[tuple[Key, VisionTransform, list[str]]]:
    """Yield each transform that moves pixels, with its place and those columns it leaves behind."""
    for key, node in _vision_nodes(config):
        left = [name for name in names if name not in (node.with_ or ())]
        if node.type in moving and left:
            yield key, node, left


def _remedy(node: VisionTransform, names: Sequence[str]) -> str:
    """Return how columns move along with an image."""
    if node.type in _MOVING_ALONE:
        both = f"{{type: RandomAffine, degrees: 10, with: [{', '.join(names)}]}}"
        return f"{node.type} moves images alone; others move both, such as {both}"
    return f"{{type: {node.type}, with: [{', '.join(names)}]}} moves both alike"


def _size(column: OfLoss) -> tuple[int, ...] | None:
    """Return height and width, in any order, of the first image of a column; None for others."""
    if isinstance(column, Numbers):
        return tuple(sorted(column.values.shape[-2:])) if column.values.ndim in (3, 4) else None
    if not isinstance(column, Images) or not len(column):
        return None
    try:
        return tuple(sorted(column.header(0).size))  # sorted, since EXIF may turn it
    except DataError:  # told when it is read, or skipped
        return None


def _is_matrix(column: OfLoss) -> bool:
    """Tell whether each sample is whole numbers `(H, W)`, as a mask is."""
    if not isinstance(column, Numbers) or column.values.ndim != 3:
        return False
    return not column.values.is_floating_point()


def _holds_points(column: OfLoss) -> bool:
    """Tell whether each sample may be boxes `(K, 4)` or points `(K, 2)`, which are floats."""
    if not isinstance(column, Numbers) or column.values.ndim != 3:
        return False
    return column.values.is_floating_point() and column.values.shape[2] in (2, 4)


def _vision_nodes(config: DataConfig) -> Iterator[tuple[Key, VisionTransform]]:
    """Yield the transforms of images with their places in the config."""
    for name in ("transforms", "evaluation_transforms"):
        for position, node in enumerate(getattr(config, name) or ()):
            if isinstance(node, VisionTransform):
                yield ("data", name, position), node


def loss_column(name: str, table: Table) -> Numbers | Ragged | Images:
    """Return a column of `data.loss_columns` as what a batch holds, or is made from.

    Raises:
        DataError: it holds something that no tensor does.
    """
    column = read_cells(table.columns[name], as_text=False)
    if isinstance(column, Images):
        return column
    if isinstance(column, Numbers):
        refuse_gaps(name, column, table.place, table.columns[name])
        return as_numbers(column)
    if holds_lists(column):
        rows = [
            sequence_of(column[row], name, table.place(row), _KEY) for row in range(len(column))
        ]
        if (numbers := whole_numbers(rows)) is not None:
            return Ragged.of(numbers, pad=IGNORED, length=None)
    raise DataError(
        f"column {name!r} holds {shown(column[0])} in {table.place(0)}; a loss takes numbers, "
        "masks, or lists of whole numbers",
        key=_KEY,
    )


def as_numbers(column: Numbers) -> Numbers:
    """Return numbers as float32 or int64, bytes too: those of a target are no pixels."""
    values = column.values
    return Numbers(values.float() if values.is_floating_point() else values.long())


def holds_lists(column: Column) -> bool:
    """Tell whether a column holds sequences, such as tags of words, judged by its first sample."""
    return (
        isinstance(column, Listed)
        and column.kind == "things"
        and len(column) > 0
        and isinstance(column[0], list | tuple | np.ndarray | Tensor)
    )


def whole_numbers(rows: Sequence[Sequence[object]]) -> list[list[int]] | None:
    """Return sequences of whole numbers as such; None if one holds something else."""
    numbers = [[value for value in row if isinstance(value, int)] for row in rows]
    return numbers if [*map(len, numbers)] == [*map(len, rows)] else None


def sequence_of(cell: Any, name: str, place: str, key: Key) -> list[int] | list[str]:
    """Return a cell as a list of whole numbers or of words.

    Raises:
        DataError: it is something else.
    """
    values = cell.tolist() if isinstance(cell, np.ndarray | Tensor) else cell
    if isinstance(values, list | tuple):
        for kind in (int, str):
            # `type`, not `isinstance`: true is an int, but no number of a tag.
            if all(type(value) is kind for value in values):
                return list(values)
    raise DataError(
        f"column {name!r} holds {shown(cell)} in {place}, which is no list of whole numbers or "
        "words",
        key=key,
    )
