"""Split samples before any transform; encode their targets; write notes on both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.config.data import SplitConfig
from finetune.config.task import ClassificationTask, Task
from finetune.data.class_counts import notes_on_classes
from finetune.data.identity import DataIdentity, RowHashes
from finetune.data.membership import keep_parts, never_trained
from finetune.data.raw_data import RawData
from finetune.data.splits import first_copies, split_samples
from finetune.data.table import Table
from finetune.data.targets import Target, encode_target, refuse_unseen
from finetune.errors import DataError

_KEEP_APART = "; split.copies: together or drop keeps them apart"


@dataclass(frozen=True, slots=True)
class RawPart:
    """Inputs of one part, its targets `(N, ...)`, and the hashes of its rows."""

    table: Table
    target: Tensor | None
    hashes: RowHashes

    def take(self, rows: Tensor) -> "RawPart":
        """Return the samples at `rows`."""
        target = None if self.target is None else self.target[rows]
        return RawPart(self.table.take(rows), target, self.hashes.take(rows))


def labelled(
    raw: RawData, task: Task, classes: tuple[str, ...] | None = None
) -> tuple[dict[str, RawPart], tuple[str, ...] | None, list[str]]:
    """Return each part with inputs and encoded targets, the classes, and notes on labels.

    Args:
        raw: The columns of all sources.
        task: Decides what the target means.
        classes: Classes of the run; None to take those of the training part.

    Raises:
        DataError: a value is missing, means nothing to the task, or is an unknown label.
    """
    parts: dict[str, RawPart] = {}
    notes: list[str] = []
    for part, table in raw.tables.items():
        encoded = None
        if raw.target is not None:
            about = f"the {part} part"
            encoded = encode_target(
                table, raw.target, task, classes=classes, part=about, rules=raw.rules
            )
            # Training comes first, so its classes hold for the parts that follow.
            classes, notes = encoded.classes, [*notes, *encoded.notes]
        parts[part] = part_of(table, raw.inputs, encoded, raw.hashes[part])
    return parts, classes, notes


def part_of(
    table: Table, inputs: Sequence[str], target: Target | None, hashes: RowHashes
) -> RawPart:
    """Return a part made of the input columns of a table and its encoded target."""
    columns = {name: table.columns[name] for name in inputs}
    values = None if target is None else target.values
    return RawPart(replace(table, columns=columns), values, hashes)


def notes_on_parts(
    parts: Mapping[str, RawPart], classes: tuple[str, ...] | None, task: Task
) -> list[str]:
    """Return notes on the classes in each part, where there is something to note."""
    targets = {name: part.target for name, part in parts.items() if part.target is not None}
    return [] if classes is None else notes_on_classes(targets, classes, task)


def parted(
    whole: RawPart,
    split: SplitConfig,
    task: Task,
    classes: tuple[str, ...] | None,
    seed: int,
) -> tuple[dict[str, RawPart], tuple[str, ...]]:
    """Return the parts of one source, split as the config says, and notes on copies."""
    # Before the split: a copy in another part would let the network be tested on what it was
    # trained on.
    whole, first, num_copies = _without_copies(whole, split)
    if split.stratify and not isinstance(task, ClassificationTask):
        raise DataError(
            f"stratify needs classes, the task is {task.type!r}", key=("data", "split", "stratify")
        )
    positions = split_samples(
        split,
        _seed_of(split, seed),
        first if split.copies == "together" else torch.arange(len(whole.table)),
        strata=whole.target if split.stratify else None,
        names=classes if split.stratify and classes else (),
    )
    parts = {name: whole.take(rows) for name, rows in positions.items()}
    # By chance alone a rare class may have all its samples in another part.
    hint = "split: {stratify: true} gives every part some of every class"
    refuse_unseen_labels(parts, classes, hint)
    copies = "1 exact copy" if num_copies == 1 else f"{num_copies} exact copies"
    match split.copies:
        case "leave":
            return parts, notes_on_copies(list(parts.values()), _KEEP_APART)
        case "together" if num_copies:
            return parts, (f"{copies} in one part with their originals",)
        case "drop" if num_copies:
            return parts, (f"{copies} left out",)
    return parts, ()


def parted_as_before(
    parts: Mapping[str, RawPart], split: SplitConfig | None, identity: DataIdentity, seed: int
) -> tuple[dict[str, RawPart], list[str]]:
    """Return parts in which each row of a run has its place again, and a line per change.

    Args:
        parts: One source, or a source for each part.
        split: How the one source is split; None if each part has its own.
        identity: The data of the run.
        seed: The run's seed.

    Raises:
        DataError: no row is left for training, or for a part with its own source.
    """
    lines: list[str] = []
    if split is not None:
        whole, _, _ = _without_copies(parts["train"], split)
        shares = {"validation": split.validation, "test": split.test}
        rows, lines = keep_parts(identity, whole.hashes, shares, _seed_of(split, seed))
        return {part: whole.take(some) for part, some in rows.items()}, lines
    kept = dict(parts)
    for part in ("validation", "test"):
        if part in parts:
            some, told = never_trained(identity, part, parts[part].hashes)
            kept[part], lines = parts[part].take(some), [*lines, *told]
    return kept, lines


def _without_copies(whole: RawPart, split: SplitConfig) -> tuple[RawPart, Tensor, int]:
    """Drop exact copies if the config says so.

    Returns:
        The samples; for each sample before dropping, the position of its first copy; the number of
        copies.
    """
    first = first_copies(whole.hashes.inputs)
    is_copy = first != torch.arange(len(first))
    if split.copies == "drop":
        whole = whole.take((~is_copy).nonzero().squeeze(1))
    return whole, first, int(is_copy.sum())


def _seed_of(split: SplitConfig, seed: int) -> int:
    """Return the seed of the split, which is the run's if it has none."""
    return seed if split.seed is None else split.seed


def refuse_unseen_labels(
    parts: Mapping[str, RawPart], classes: tuple[str, ...] | None, hint: str | None
) -> None:
    """Raise `DataError` if a part holds a class that the training part lacks."""
    trained = parts["train"].target
    for name, part in parts.items():
        if classes is not None and trained is not None and part.target is not None:
            refuse_unseen(trained, part.target, classes, f"the {name} part", hint)


def notes_on_copies(parts: Sequence[RawPart], remedy: str = "") -> tuple[str, ...]:
    """Return a note on how many samples are exact copies, and how many of those across parts."""
    # Copies only matter where one may be trained on and another one tested.
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
