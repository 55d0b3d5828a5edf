"""Make parts of tables: inputs, encoded targets, hashes of rows; write notes on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.task_list_keys import AnyTask as Task, TaskList
from finetune.data.columns import placing_columns
from finetune.data.identify.identity import RowHashes
from finetune.data.images import Images
from finetune.data.parts.raw_data import RawData
from finetune.data.parts.split_columns import values_of
from finetune.data.parts.splits import first_copies
from finetune.data.ragged import Ragged
from finetune.data.samples import ForLoss
from finetune.data.table import Numbers, Table
from finetune.data.targets.class_counts import (
    Counted,
    class_counts,
    notes_on_classes,
    notes_on_constants,
)
from finetune.data.targets.class_numbers import Target, refuse_unseen
from finetune.data.targets.encode import encode_target
from finetune.data.targets.listed_targets import (
    NO_LIST,
    ListedTargets,
    encode_listed,
    notes_on_listed,
    refuse_unseen_in_list,
)
from finetune.data.targets.loss_columns import loss_column
from finetune.data.targets.target_units import notes_on_units


@dataclass(frozen=True, slots=True)
class RawPart:
    """Inputs of one part, its targets, and the hashes of its rows."""

    table: Table
    target: Tensor | None
    """Targets `(N, ...)`; None without any, and where they are masks or sequences."""
    hashes: RowHashes
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values of the columns that say where samples go and how often, by the key that names them:
    `by`, `group`, `weights`."""
    target_name: str | None = None
    beside: Mapping[str, Numbers | Ragged | Images] = field(default_factory=dict)
    """Columns for the loss that are no such tensor: masks, sequences, `data.loss_columns`."""
    mask: str | None = None
    """Name of the target if it is a class for each pixel; None for masks of any other meaning."""
    boxes: str | None = None
    """Name of the target if it is boxes with a class each."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes, by target column of a list of tasks."""

    @property
    def for_loss(self) -> ForLoss:
        """All columns that the loss takes."""
        if self.target is None or self.target_name is None:
            return ForLoss(self.target_name, self.beside)
        return ForLoss(self.target_name, {self.target_name: Numbers(self.target), **self.beside})

    def counts(self, num_classes: int) -> tuple[int, ...] | None:
        """Return how many samples each class or label has; None where the target is an image.

        Tags of words are counted as often as they occur.
        """
        target = None if self.mask is not None else self.class_numbers
        return None if target is None else tuple(class_counts(target, num_classes).tolist())

    @property
    def class_numbers(self) -> Tensor | None:
        """The class of each sample `(N,)`, its labels `(N, C)`, or the class of each word or pixel.

        None without classes, and where masks lie in files. Words and pixels without a class are
        left out.
        """
        found = self.beside.get(self.target_name or "")
        target = self.target
        if isinstance(found, Ragged):
            # The last number belongs to no sequence, see `Ragged`.
            target = found.values[:-1].long()
        elif self.mask is not None and isinstance(found, Numbers):
            target = found.values.flatten()
        is_of_classes = target is not None and target.ndim == 1 and not target.is_floating_point()
        return target[target >= 0] if target is not None and is_of_classes else target

    def take(self, rows: Tensor) -> "RawPart":
        """Return the samples at `rows`."""
        target = None if self.target is None else self.target[rows]
        order = rows.tolist()
        places = {key: [values[row] for row in order] for key, values in self.places.items()}
        return replace(
            self,
            table=self.table.take(rows),
            target=target,
            hashes=self.hashes.take(rows),
            places=places,
            beside={name: column.take(rows) for name, column in self.beside.items()},
        )


def labelled(
    raw: RawData,
    task: Task,
    classes: tuple[str, ...] | None = None,
    by_target: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> tuple[dict[str, RawPart], tuple[str, ...] | None, list[str]]:
    """Return each part with inputs and encoded targets, the classes, and notes on labels.

    Args:
        raw: The columns of all sources.
        task: Decides what the target means.
        classes: Classes of the run; None to take those of the training part.
        by_target: The same for each target column of a list of tasks.

    Raises:
        DataError: a value is missing, means nothing to the task, or is an unknown label.
    """
    parts: dict[str, RawPart] = {}
    notes: list[str] = []
    for part, table in raw.tables.items():
        encoded, about = None, f"the {part} part"
        skips = raw.config.on_error == "skip"
        if raw.target is not None and not isinstance(task, TaskList):
            encoded = encode_target(
                table, raw.target, task, classes=classes, part=about, rules=raw.rules, skips=skips
            )
            # Training comes first, so its classes hold for the parts that follow.
            classes, notes = encoded.classes, [*notes, *encoded.notes]
            if task.learns == "boxes":
                notes += _on_divided_boxes(table, encoded.values, raw.hashes[part])
        # Of a source that is split later, the rows are those of all parts.
        whole = about if raw.config.split is None else "the data"
        listed = encode_listed(table, task, classes=by_target, part=whole, rules=raw.rules)
        by_target, notes = by_target or listed.classes, [*notes, *listed.notes]
        parts[part] = part_of(
            table, raw.config, raw.inputs, raw.target, encoded, raw.hashes[part], listed
        )
    parts["train"] = replace(parts["train"], places=_places(raw))
    return parts, classes, notes


def _on_divided_boxes(table: Table, boxes: object, hashes: RowHashes) -> list[str]:
    """Return a note on images whose boxes lie in several rows, each a sample; or nothing."""
    if not isinstance(boxes, Numbers):
        return []
    first = first_copies(hashes.inputs)
    differs = (boxes.values != boxes.values[first]).flatten(1).any(1)
    rows = differs.nonzero().flatten().tolist()
    if not rows:
        return []
    places = f"{table.place(int(first[rows[0]]))} and {table.place(rows[0])}"
    count = len({int(first[row]) for row in rows})
    return [
        f"{count:,} image{'s are' if count > 1 else ' is'} in several rows with other boxes, such "
        f"as in {places}: each row teaches that there are no others, so one row holds all "
        "boxes of its image"
    ]


def _places(raw: RawData) -> dict[str, list[str]]:
    """Return the values of the columns that say where training samples go, and how often."""
    table, placing = raw.tables["train"], placing_columns(raw.config)
    return {str(key[-1]): values_of(table, name, key) for key, name in placing.items()}


def part_of(
    table: Table,
    config: DataConfig,
    inputs: Sequence[str],
    target: str | None,
    encoded: Target | None,
    hashes: RowHashes,
    listed: ListedTargets = NO_LIST,
) -> RawPart:
    """Return a part made of the input columns of a table, its encoded target, and loss columns.

    Args:
        table: All columns in use.
        config: `data:` of the config.
        inputs: Names of the input columns.
        target: Name of the target column; None without a target.
        encoded: The target.
        hashes: Hashes of the rows.
        listed: The targets of a list of tasks.
    """
    columns = {name: table.columns[name] for name in inputs}
    plain = (name for name in config.loss_columns if name not in listed.columns)
    beside = {**{name: loss_column(name, table) for name in plain}, **listed.columns}
    values = None if encoded is None else encoded.values
    alone = replace(table, columns=columns)
    if values is None or isinstance(values, Tensor):
        return RawPart(
            alone, values, hashes, target_name=target, beside=beside, classes=listed.classes
        )
    assert target is not None  # what was encoded has a name
    has_classes = encoded is not None and encoded.classes is not None
    # Numbers of classes are whole ones in masks; boxes have them beside their corners.
    has_boxes = isinstance(values, Numbers) and values.values.is_floating_point()
    is_mask = has_classes and isinstance(values, Images | Numbers) and not has_boxes
    beside = {target: values, **beside}
    return RawPart(
        alone,
        None,
        hashes,
        target_name=target,
        beside=beside,
        mask=target if is_mask else None,
        boxes=target if has_boxes else None,
    )


def notes_on_parts(
    parts: Mapping[str, RawPart], classes: tuple[str, ...] | None, task: Task
) -> list[str]:
    """Return notes on the classes in each part, or on numbers that are the same in all of one."""
    if isinstance(task, TaskList):
        known = parts["train"].classes
        return notes_on_listed({name: part.beside for name, part in parts.items()}, known, task)
    found = {name: part.class_numbers for name, part in parts.items()}
    targets = {name: target for name, target in found.items() if target is not None}
    if classes is None or not targets:
        if task.learns != "numbers":
            return []
        name = parts["train"].target_name or ""
        return [*notes_on_constants(targets, name), *notes_on_units(targets, name)]
    counted = {name: Counted.of(target, len(classes)) for name, target in targets.items()}
    return notes_on_classes(counted, classes, task)


def refuse_unseen_labels(
    parts: Mapping[str, RawPart],
    classes: tuple[str, ...] | None,
    hint: str | None,
    *,
    is_split: bool = False,
) -> None:
    """Raise `DataError` if a part holds a class that the training part lacks."""
    refuse_unseen_in_list(
        {name: part.beside for name, part in parts.items()}, parts["train"].classes, hint
    )
    trained = parts["train"].target
    drawn = [part.target for part in parts.values() if part.target is not None and is_split]
    for name, part in parts.items():
        if classes is not None and trained is not None and part.target is not None:
            refuse_unseen(trained, part.target, classes, f"the {name} part", hint, drawn=drawn)


def notes_on_copies(
    parts: Sequence[RawPart], remedy: str = "", *, are_of_one_source: bool
) -> tuple[str, ...]:
    """Return a note on how many samples are exact copies, and how many of those across parts.

    Args:
        parts: The parts.
        remedy: What keeps copies apart, for the note.
        are_of_one_source: Whether a split has made them, for which 0.5 and 0.50 are no copies.
            Several sources may have other notations for one row.
    """
    # Copies only matter where one may be trained on and another one tested.
    if len(parts) == 1:
        return ()
    # Over all parts at once: the first copy of a sample may lie in another part.
    hashes = [p.hashes.inputs if are_of_one_source else p.hashes.as_read for p in parts]
    first = first_copies(torch.cat(hashes))
    owner = torch.cat([torch.full((len(p.table),), n) for n, p in enumerate(parts)])
    copies = int((first != torch.arange(len(first))).sum())
    across = int((owner[first] != owner).sum())
    if copies == 0:
        return ()
    note = f"{copies} of {len(first)} samples are exact copies, {across} of them across parts"
    targets = [part.target for part in parts if part.target is not None]
    target = torch.cat(targets) if len(targets) == len(parts) else None
    return (note + (remedy if across else ""), *notes_on_contradictions(first, target))


def notes_on_contradictions(first: Tensor, target: Tensor | None) -> tuple[str, ...]:
    """Return a note on copies whose target is not that of the sample they repeat; or nothing.

    Args:
        first: Position of each sample's first exact copy, `(N,)`.
        target: Targets `(N, ...)`; None without any.
    """
    if target is None:
        return ()
    # Of the copies alone: all targets may be more than memory holds twice.
    copies = (first != torch.arange(len(first))).nonzero().flatten()
    if not len(copies):
        return ()
    differs = (target[copies] != target[first[copies]]).reshape(len(copies), -1).any(1)
    if not (count := int(differs.sum())):
        return ()
    copied = f"{count} of {len(copies)} exact copies"
    return (f"{copied} have another target than the sample they repeat",)
