"""Split the samples of one source into parts, and give each row of a run its part again."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from finetune.config.data import SplitConfig
from finetune.config.task_list_keys import AnyTask as Task
from finetune.data.identify.identity import DataIdentity
from finetune.data.identify.membership import (
    Newcomers,
    drawn_parts,
    keep_parts,
    named_parts,
    never_trained,
    parts_of_groups,
    untrained,
)
from finetune.data.parts.parting import (
    RawPart,
    notes_on_contradictions,
    notes_on_copies,
    refuse_unseen_labels,
)
from finetune.data.parts.split_columns import joined_groups, parts_by
from finetune.data.parts.splits import first_copies, split_samples
from finetune.data.parts.spread import few_of_each, note_on_sizes, spread
from finetune.errors import DataError

_KEEP_APART = "; split.copies: together or drop keeps them apart"


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
        drawn = [whole.take(rows) for rows in positions.values()]
        notes = [*notes_on_copies(drawn, are_of_one_source=True)]
    else:
        # Before the split: a copy in another part would let the network be tested on what it was
        # trained on.
        target = whole.target
        whole, first, num_copies = _without_copies(whole, split)
        positions, notes = _drawn(whole, split, task, classes, seed, first)
        notes = [*_on_copies(whole, split, positions, num_copies), *notes]
        if split.copies != "leave":
            notes += notes_on_contradictions(first, target)
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
    notes = []
    if group is not None:
        groups = joined_groups(groups, group)
        if len(set(group)) == count:
            what = f"split.group: each of {count:,} samples has a value of its own in column"
            notes.append(f"{what} {split.group!r}: it keeps nothing together")
    if split.folds is None:
        shares = {"train": 1 - sum(split.shares.values()), **split.shares}
        parts = spread(groups, labels, shares, seed)
    else:
        parts = _folded(groups, labels, split, split.folds, seed)
    return parts, [*notes, *note_on_sizes(parts, split.shares)]


def _folded(
    groups: Tensor, labels: Tensor | None, split: SplitConfig, count: int, seed: int
) -> dict[str, Tensor]:
    """Return the test part, which all folds share, one of `count` folds held out, and the rest."""
    rest, parts = torch.arange(len(groups)), dict[str, Tensor]()
    if split.test:
        # Before the folds are cut, and from the seed alone: all folds have the same test part.
        cut = spread(groups, labels, {"rest": 1 - split.test, "test": split.test}, seed)
        rest, parts["test"] = cut["rest"], cut["test"]
    names = [f"fold {number}" for number in range(count)]
    of_rest = None if labels is None else labels[rest]
    folds = spread(groups[rest], of_rest, dict.fromkeys(names, 1 / count), seed)
    held = folds.pop(names[split.fold or 0])
    # Sorted: samples are in the order of the file, whichever fold is held out.
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
            return notes_on_copies(parts, _KEEP_APART, are_of_one_source=True)
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
