"""The way from sources to parts: raw columns, targets as numbers, one source parted."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from finetune.config.data import DataConfig
from finetune.config.task import Task
from finetune.data.columns import Kind
from finetune.data.contents import KnownFiles
from finetune.data.identity import DataIdentity, differences, differences_of_contents
from finetune.data.parting import (
    RawPart,
    labelled,
    notes_on_copies,
    notes_on_parts,
    parted,
    parted_as_before,
    refuse_unseen_labels,
)
from finetune.data.raw_data import RawData, read_data
from finetune.errors import DataError
from finetune.redaction import redacted


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the data says about itself, as plain data.

    Args:
        inputs: The raw columns that the network is fed from.
        target: The column it learns to give; None where an imported task needs none.
        classes: Names of the classes, each the place of its number; None where there are none.
        notes: What the user should know, a sentence each.
        sizes: Number of samples of each part.
        kinds: What each input column holds.
    """

    inputs: tuple[str, ...]
    target: str | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]
    sizes: dict[str, int]
    kinds: dict[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """What a run has kept of its data.

    Args:
        identity: Hashes of its rows, its classes.
        kinds: What each input column holds.
        accept: Called with what differs from the data at hand, a line each, if anything does.
            Raises where the user has not accepted that.
        trains: Whether the run goes on with the data. Then as many classes of other names may take
            the places of its own.
    """

    identity: DataIdentity
    kinds: Mapping[str, Kind]
    accept: Callable[[Sequence[str]], None]
    trains: bool


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Every part with its targets, before any transform."""

    train: RawPart
    validation: RawPart | None
    test: RawPart | None
    facts: DataFacts
    identity: DataIdentity
    changes: tuple[str, ...] = ()
    """What differs from the data that the run had before, and what became of it, a line each."""


def open_data(
    config: DataConfig,
    task: Task,
    *,
    seed: int,
    trust: Collection[str],
    files: KnownFiles | None = None,
    head: Sequence[str] = (),
    record: Record | None = None,
) -> OpenedData:
    """Read the sources, part them, and turn the targets into numbers.

    Args:
        config: `data:` of the config.
        task: Says what the target means.
        seed: The run's seed, by which samples are parted unless `split.seed` is given.
        trust: Names of packages whose code may be imported.
        files: Knows what image files hold from earlier runs; None to read all of them.
        head: Names that the network's pretrained head gives its outputs, in their order.
        record: What a run that has begun has kept of its data; None where none has.

    Raises:
        DataError: a source, a column or a value is not what the config says.
        FinetuneError: it is not the data of the run, and that was not accepted.
    """
    raw = read_data(config, task, seed=seed, trust=trust, files=files, head=head)
    return _opened(raw, task, seed) if record is None else _opened_again(raw, task, seed, record)


def _opened(raw: RawData, task: Task, seed: int) -> OpenedData:
    parts, classes, on_labels = labelled(raw, task)
    if raw.config.split is None:
        notes = notes_on_copies(list(parts.values()))
        refuse_unseen_labels(parts, classes, None)
    else:
        parts, notes = parted(parts["train"], raw.config.split, task, classes, seed)
    return _with_facts(raw, parts, classes, task, (*notes, *on_labels))


def _opened_again(raw: RawData, task: Task, seed: int, record: Record) -> OpenedData:
    """Open the data of a run that has begun. Where it has changed, rows keep their part."""
    before = record.identity
    try:
        if before.is_kept:
            opened, _ = _opened_as_before(raw, task, seed, record)
        else:
            opened = _opened(raw, task, seed)
        changes = differences(before, opened.identity)
    except DataError:
        # other rows are the first cause of labels that nobody knows
        now = replace(raw.identity, classes=_found_classes(raw, task))
        changes = differences_of_contents(before, now)
        if not changes:
            raise
    else:
        if not changes:
            identity = replace(opened.identity, former=before.former, is_kept=before.is_kept)
            return replace(opened, identity=identity)
    record.accept(changes)
    opened, lines = _opened_as_before(raw, task, seed, record)
    identity = opened.identity.after(before)
    return replace(opened, identity=identity, changes=(*changes, *lines))


def _opened_as_before(
    raw: RawData, task: Task, seed: int, record: Record
) -> tuple[OpenedData, list[str]]:
    """Open data with kinds, classes and parts of a run; return a line for each row that is new."""
    raw = raw.of_kinds(record.kinds)
    known, renamed = record.identity.classes, list[str]()
    if record.trains and known is not None:
        known, renamed = _renamed(known, raw, task)
    parts, classes, _ = labelled(raw, task, known)
    parts, lines = parted_as_before(parts, raw.config.split, record.identity, seed)
    notes = notes_on_copies(list(parts.values()))
    return _with_facts(raw, parts, classes, task, notes), [*renamed, *lines]


def _renamed(known: tuple[str, ...], raw: RawData, task: Task) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes that a run goes on with, and a line where others took their places."""
    found = _found_classes(raw, task)
    if found is None or len(found) != len(known) or set(found) <= set(known):
        return known, []
    moved = [f"{old!r} to {new!r}" for old, new in zip(known, found, strict=True) if old != new]
    return found, [f"outputs change their class: {', '.join(moved[:3])}"]


def _found_classes(raw: RawData, task: Task) -> tuple[str, ...] | None:
    """Return the classes that the data itself shows; None without any, or if its parts differ."""
    with suppress(DataError):
        return labelled(raw, task)[1]
    return None


def _with_facts(
    raw: RawData,
    parts: Mapping[str, RawPart],
    classes: tuple[str, ...] | None,
    task: Task,
    notes: Sequence[str],
) -> OpenedData:
    notes = (*raw.notes, *notes, *notes_on_parts(parts, classes, task))
    sizes = {name: len(part.table) for name, part in parts.items()}
    told = tuple(map(redacted, notes))
    facts = DataFacts(raw.inputs, raw.target, classes, told, sizes, dict(raw.kinds))
    identity = DataIdentity.of({name: part.hashes for name, part in parts.items()}, classes)
    return OpenedData(parts["train"], parts.get("validation"), parts.get("test"), facts, identity)
