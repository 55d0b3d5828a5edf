"""Split samples before any transform; encode their targets; write notes on both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from finetune.config.data import DataConfig, SplitConfig
from finetune.config.task_list_keys import AnyTask as Task, TaskList
from finetune.data.class_counts import Counted, class_counts, notes_on_classes
from finetune.data.columns import placing_columns
from finetune.data.identity import DataIdentity, RowHashes
from finetune.data.images import Images
from finetune.data.listed_targets import (
    NO_LIST,
    ListedTargets,
    encode_listed,
    notes_on_listed,
    refuse_unseen_in_list,
)
from finetune.data.loss_columns import loss_column
from finetune.data.membership import (
    Newcomers,
    drawn_parts,
    keep_parts,
    named_parts,
    never_trained,
    parts_of_groups,
    untrained,
)
from finetune.data.ragged import Ragged
from finetune.data.raw_data import RawData
from finetune.data.samples import ForLoss
from finetune.data.split_columns import joined_groups, parts_by, values_of
from finetune.data.splits import first_copies, split_samples
from finetune.data.spread import few_of_each, note_on_sizes, spread
from finetune.data.table import Numbers, Table
from finetune.data.targets import Target, encode_target, refuse_unseen
from finetune.errors import DataError

_KEEP_APART = "; split.copies: together or drop keeps them apart"


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
        # Of a source that is split later, the rows are those of all parts.
        whole = about if raw.config.split is None else "the data"
        listed = encode_listed(table, task, classes=by_target, part=whole, rules=raw.rules)
        by_target, notes = by_target or listed.classes, [*notes, *listed.notes]
        parts[part] = part_of(
            table, raw.config, raw.inputs, raw.target, encoded, raw.hashes[part], listed
        )
    parts["train"] = replace(parts["train"], places=_places(raw))
    return parts, classes, notes


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
    """Return notes on the classes in each part, where there is something to note."""
    if isinstance(task, TaskList):
        known = parts["train"].classes
        return notes_on_listed({name: part.beside for name, part in parts.items()}, known, task)
    found = {name: part.class_numbers for name, part in parts.items()}
    targets = {name: target for name, target in found.items() if target is not None}
    if classes is None or not targets:
        return []
    counted = {name: Counted.of(target, len(classes)) for name, target in targets.items()}
    return notes_on_classes(counted, classes, task)


def parted(
    whole: RawPart,
    split: SplitConfig,
    task: Task,
    classes: tuple[str, ...] | None,
    seed: int,
) -> tuple[dict[str, RawPart], tuple[str, ...]]:
    """Return the parts of one source, split as the config says, and notes on how.

    Raises:
        DataError: a part would be empty, or the split does not suit task or data.
    """
    if split.by is not None:
        positions = parts_by(whole.places["by"], whole.table, split.by)
        notes = [*notes_on_copies([whole.take(rows) for rows in positions.values()])]
    else:
        # Before the split: a copy in another part would let the network be tested on what it was
        # trained on.
        whole, first, num_copies = _without_copies(whole, split)
        positions, notes = _drawn(whole, split, task, classes, seed, first)
        notes = [*_on_copies(whole, split, positions, num_copies), *notes]
    if split.per_class is not None:
        positions, more = _with_few(positions, whole, split, task, classes, seed)
        notes += more
    parts = {name: whole.take(rows) for name, rows in positions.items()}
    # By chance alone a rare class may have all its samples in another part.
    hint = None if split.by else "split: {stratify: true} gives every part some of every class"
    refuse_unseen_labels(parts, classes, hint, is_split=True)
    return parts, tuple(notes)


def _drawn(
    whole: RawPart,
    split: SplitConfig,
    task: Task,
    classes: tuple[str, ...] | None,
    seed: int,
    first: Tensor,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the positions of each part, drawn at random, and notes on their sizes.

    Args:
        whole: All samples.
        split: How they are split.
        task: Decides what the target means.
        classes: Names of the classes.
        seed: The run's seed.
        first: Position of each sample's first exact copy, `(N,)`.
    """
    labels = _labels(whole, task, classes) if split.stratify else None
    seed, count = _seed_of(split, seed), len(whole.table)
    groups = first if split.copies == "together" else torch.arange(count)
    group = whole.places.get("group")
    has_several = split.stratify and task.learns == "labels"
    if group is None and split.folds is None and not has_several:
        # exact sizes: nothing but copies has to stay together, and every sample has one stratum
        strata = whole.target if split.stratify else None
        names = classes if split.stratify and classes else ()
        return split_samples(split, seed, groups, strata=strata, names=names), []
    if group is not None:
        groups = joined_groups(groups, group)
    if split.folds is None:
        shares = {"train": 1 - sum(split.shares.values()), **split.shares}
        parts = spread(groups, labels, shares, seed)
    else:
        parts = _folded(groups, labels, split, split.folds, seed)
    return parts, note_on_sizes(parts, split.shares)


def _folded(
    groups: Tensor, labels: Tensor | None, split: SplitConfig, count: int, seed: int
) -> dict[str, Tensor]:
    """Return the test part, which all folds share, one of `count` folds held out, and the rest."""
    rest, parts = torch.arange(len(groups)), dict[str, Tensor]()
    if split.test:
        cut = spread(groups, labels, {"rest": 1 - split.test, "test": split.test}, seed)
        rest, parts["test"] = cut["rest"], cut["test"]
    names = [f"fold {number}" for number in range(count)]
    of_rest = None if labels is None else labels[rest]
    folds = spread(groups[rest], of_rest, dict.fromkeys(names, 1 / count), seed)
    held = folds.pop(names[split.fold or 0])
    train = rest[torch.cat([*folds.values()]).sort().values]
    return parts | {"train": train, "validation": rest[held]}


def _labels(whole: RawPart, task: Task, classes: tuple[str, ...] | None) -> Tensor:
    """Return 1 where a sample has a label, `(N, C)`.

    Raises:
        DataError: the task has no classes.
    """
    has_classes = task.learns in ("class", "labels")
    if not has_classes or whole.target is None or classes is None:
        raise DataError(
            f"stratify needs classes, the task is {task.type!r}", key=("data", "split", "stratify")
        )
    if task.learns == "labels":
        return whole.target
    return functional.one_hot(whole.target, len(classes)).float()


def _with_few(
    positions: Mapping[str, Tensor],
    whole: RawPart,
    split: SplitConfig,
    task: Task,
    classes: tuple[str, ...] | None,
    seed: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the parts with a few training samples of each class, and notes on it."""
    if task.learns != "class" or whole.target is None or classes is None:
        raise DataError(
            f"per_class needs classes, the task is {task.type!r}",
            key=("data", "split", "per_class"),
        )
    assert split.per_class is not None
    kept, notes = few_of_each(
        positions["train"], whole.target, classes, split.per_class, _seed_of(split, seed)
    )
    return {**positions, "train": kept}, notes


def _on_copies(
    whole: RawPart, split: SplitConfig, positions: Mapping[str, Tensor], num_copies: int
) -> tuple[str, ...]:
    """Return a note on what the split does with samples that are exact copies; none without any."""
    copies = "1 exact copy" if num_copies == 1 else f"{num_copies} exact copies"
    match split.copies:
        case "leave":
            parts = [whole.take(rows) for rows in positions.values()]
            return notes_on_copies(parts, _KEEP_APART)
        case "together" if num_copies:
            return (f"{copies} in one part with their originals",)
        case "drop" if num_copies:
            return (f"{copies} left out",)
    return ()


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
        rows, lines = keep_parts(identity, whole.hashes, _newcomers(whole, split, seed))
        return {part: whole.take(some) for part, some in rows.items()}, lines
    kept = dict(parts)
    for part in ("validation", "test"):
        if part in parts:
            some, told = never_trained(identity, part, parts[part].hashes)
            kept[part], lines = parts[part].take(some), [*lines, *told]
    return kept, lines


def _newcomers(whole: RawPart, split: SplitConfig, seed: int) -> Newcomers:
    """Return what assigns rows that a run does not know: as its split would have done."""
    seed = _seed_of(split, seed)
    if split.by is not None:
        parts = parts_by(whole.places["by"], whole.table, split.by)
        newcomers = named_parts(parts, len(whole.table))
    elif (group := whole.places.get("group")) is not None:
        newcomers = parts_of_groups(group, split.shares, seed)
    else:
        newcomers = drawn_parts(whole.hashes, split.shares, seed)
    # Otherwise the samples that were left out would now train.
    return newcomers if split.per_class is None else untrained(newcomers)


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
