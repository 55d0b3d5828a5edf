"""Samples before any transform: targets as numbers, one source parted, and what is told of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.config.data import SplitConfig
from finetune.config.task import ClassificationTask, Task
from finetune.data.class_counts import notes_on_classes
from finetune.data.identity import RowHashes, hash_rows
from finetune.data.labels import LabelRules
from finetune.data.splits import first_copies, split_samples
from finetune.data.table import Numbers, Table, refuse_gaps
from finetune.data.targets import Target, encode_target, refuse_unseen
from finetune.errors import DataError

_KEEP_APART = "; split.copies: together or drop keeps them apart"


@dataclass(frozen=True, slots=True)
class RawPart:
    """The raw inputs of one part, its targets `(N, ...)`, and hashes of its rows."""

    table: Table
    target: Tensor | None
    hashes: RowHashes

    def take(self, rows: Tensor) -> "RawPart":
        """Return the samples at `rows`."""
        target = None if self.target is None else self.target[rows]
        return RawPart(self.table.take(rows), target, self.hashes.take(rows))


def labelled(
    tables: Mapping[str, Table],
    inputs: Sequence[str],
    target: str | None,
    task: Task,
    rules: LabelRules,
) -> tuple[dict[str, RawPart], tuple[str, ...] | None, list[str]]:
    """Part inputs from targets; return with them the classes of training, and notes on labels."""
    parts: dict[str, RawPart] = {}
    classes: tuple[str, ...] | None = None
    notes: list[str] = []
    for part, table in tables.items():
        encoded = _encoded_target(table, target, task, classes, part, rules)
        if encoded is not None:
            classes, notes = encoded.classes, [*notes, *encoded.notes]
        parts[part] = _part(table, inputs, encoded)
    return parts, classes, notes


def notes_on_parts(
    parts: Mapping[str, RawPart], classes: tuple[str, ...] | None, task: Task
) -> list[str]:
    """Tell what the parts hold of each class, where it is worth a note."""
    targets = {name: part.target for name, part in parts.items() if part.target is not None}
    return [] if classes is None else notes_on_classes(targets, classes, task)


def _encoded_target(
    table: Table,
    target: str | None,
    task: Task,
    classes: tuple[str, ...] | None,
    part: str,
    rules: LabelRules,
) -> Target | None:
    """Return the target of a part, numbered by `classes` if there are any."""
    if target is None:
        return None
    about = f"the {part} part"
    return encode_target(table, target, task, classes=classes, part=about, rules=rules)


def _part(table: Table, inputs: Sequence[str], target: Target | None) -> RawPart:
    """Part inputs from target."""
    columns = {name: table.columns[name] for name in inputs}
    for name, column in columns.items():
        if isinstance(column, Numbers):
            refuse_gaps(name, column, table)
    hashes = hash_rows(table.columns, inputs)
    values = None if target is None else target.values
    return RawPart(replace(table, columns=columns), values, hashes)


def parted(
    whole: RawPart,
    split: SplitConfig,
    task: Task,
    classes: tuple[str, ...] | None,
    seed: int,
) -> tuple[dict[str, RawPart], tuple[str, ...]]:
    """Part one source; return the parts and notes on copies."""
    first = first_copies(whole.hashes.inputs)
    is_copy = first != torch.arange(len(first))
    num_copies = int(is_copy.sum())
    if split.copies == "drop":
        whole = whole.take((~is_copy).nonzero().squeeze(1))
    if split.stratify and not isinstance(task, ClassificationTask):
        raise DataError(
            f"stratify needs classes, the task is {task.type!r}", key=("data", "split", "stratify")
        )
    positions = split_samples(
        split,
        seed if split.seed is None else split.seed,
        first if split.copies == "together" else torch.arange(len(whole.table)),
        strata=whole.target if split.stratify else None,
        names=classes if split.stratify and classes else (),
    )
    parts = {name: whole.take(rows) for name, rows in positions.items()}
    refuse_unseen_labels(
        parts, classes, "split: {stratify: true} gives every part some of every class"
    )
    copies = "1 exact copy" if num_copies == 1 else f"{num_copies} exact copies"
    match split.copies:
        case "leave":
            return parts, notes_on_copies(list(parts.values()), _KEEP_APART)
        case "together" if num_copies:
            return parts, (f"{copies} in one part with their originals",)
        case "drop" if num_copies:
            return parts, (f"{copies} left out",)
    return parts, ()


def refuse_unseen_labels(
    parts: Mapping[str, RawPart], classes: tuple[str, ...] | None, hint: str | None
) -> None:
    """Raise a DataError if a part holds a class that the training part never does."""
    trained = parts["train"].target
    for name, part in parts.items():
        if classes is not None and trained is not None and part.target is not None:
            refuse_unseen(trained, part.target, classes, f"the {name} part", hint)


def notes_on_copies(parts: Sequence[RawPart], remedy: str = "") -> tuple[str, ...]:
    """Say how many samples are exact copies, and how many of those lie in different parts."""
    if len(parts) == 1:
        return ()
    first = first_copies(torch.cat([part.hashes.inputs for part in parts]))
    owner = torch.cat([torch.full((len(p.table),), n) for n, p in enumerate(parts)])
    copies = int((first != torch.arange(len(first))).sum())
    across = int((owner[first] != owner).sum())
    if copies == 0:
        return ()
    note = f"{copies} of {len(first)} samples are exact copies, {across} of them across parts"
    return (note + (remedy if across else ""),)
