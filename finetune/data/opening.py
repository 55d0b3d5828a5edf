"""Open data: from sources to parts with raw columns and encoded targets."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from finetune.config.data import DataConfig
from finetune.config.task_list_keys import AnyTask as Task
from finetune.data.column_kinds import Kind, is_of_bytes
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.identify.differences import differences, differences_of_contents, mended
from finetune.data.identify.identity import DataIdentity
from finetune.data.parts.epoch_order import EpochOrder, epoch_order
from finetune.data.parts.parting import (
    RawPart,
    labelled,
    notes_on_copies,
    notes_on_parts,
    refuse_unseen_labels,
)
from finetune.data.parts.raw_data import RawData, read_data
from finetune.data.parts.split_columns import refuse_flags_of_others
from finetune.data.parts.split_source import parted, parted_as_before
from finetune.data.steps.learnt import Learnt
from finetune.data.steps.text_windows import WindowCutter, in_windows
from finetune.data.targets.listed_targets import TargetClasses, classes_and_counts
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing
from finetune.redaction import redacted


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the data says about itself, as plain data.

    Args:
        inputs: Names of the raw input columns.
        target: Name of the target column; None if an imported task needs none.
        classes: Names of the classes, in the order of their numbers; None if there are none.
        notes: Lines to report to the user.
        sizes: Number of samples of each part.
        kinds: Kind of each input column.
        fitted: What each fitted step has kept of the training samples, in their order.
        counts: Training samples of each class, or with each label; None without classes, and where
            the target is an image.
        by_target: Classes of each target of a list of tasks that has some.
        of_bytes: Names of the inputs that are images of bytes, which become 0 to 1; empty for a run
            of an earlier version, too.
    """

    inputs: tuple[str, ...]
    target: str | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]
    sizes: dict[str, int]
    kinds: dict[str, Kind] = field(default_factory=dict)
    fitted: tuple[Learnt, ...] = ()
    counts: tuple[int, ...] | None = None
    by_target: dict[str, TargetClasses] = field(default_factory=dict)
    of_bytes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What a run kept about its data, to compare with the data at hand.

    Args:
        identity: Hashes of its rows, and its classes.
        kinds: Kind of each input column.
        accept: Called with one line per difference if there is any; raises if the user has not
            accepted changed data.
        trains: Whether the run continues on the data; then classes of other names may take the
            places of its own, if there are as many.
        fitted: What each fitted step has kept of the training samples.
    """

    identity: DataIdentity
    kinds: Mapping[str, Kind]
    accept: Callable[[Sequence[str]], None]
    trains: bool
    fitted: tuple[Learnt, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Every part with inputs and targets, before any transform."""

    train: RawPart
    validation: RawPart | None
    test: RawPart | None
    facts: DataFacts
    identity: DataIdentity
    order: EpochOrder
    """Which training samples every epoch draws."""
    changes: tuple[str, ...] = ()
    """Lines on how the data differs from what the run had before, and what follows from that."""


def open_data(
    config: DataConfig,
    task: Task,
    *,
    seed: int,
    trust: Collection[str],
    files: KnownFiles | None = None,
    head: Sequence[str] = (),
    record: Record | None = None,
    limit: float | None = None,
    preprocessing: Preprocessing | None = None,
) -> OpenedData:
    """Return all parts of the data, with targets as numbers.

    Args:
        config: `data:` of the config.
        task: Decides what the target means.
        seed: The run's seed, used for the split unless `split.seed` is given.
        trust: Names of packages whose code may be imported.
        files: Hashes of image files from earlier runs; None to read all files.
        head: Names of the outputs of the network's pretrained head, in order.
        record: What a run that has begun kept about its data; None for a new run.
        limit: `train.limit`.
        preprocessing: What the network was pretrained with; needed by a task whose texts are cut
            into windows, and to find all faults of a table at once.

    Raises:
        DataError: a source, a column or a value is not what the config says.
        FinetuneError: it is not the data of the run, and changed data was not accepted.
    """
    known_by = None if record is None else record.identity.known_by
    raw = read_data(
        config,
        task,
        seed=seed,
        trust=trust,
        files=files,
        head=head,
        known_by=known_by,
        preprocessing=preprocessing,
    )
    if record is None:
        opened = _opened(raw, task, seed, is_new=True)
    else:
        opened = _opened_again(raw, task, seed, record)
    if preprocessing is not None:
        opened = _in_windows(opened, raw.config, task, preprocessing, trust)
    classes = opened.facts.classes
    order, notes = epoch_order(
        opened.train, config.balance, limit, task=task, classes=classes, seed=seed
    )
    facts = replace(opened.facts, notes=(*opened.facts.notes, *map(redacted, notes)))
    return replace(opened, order=order, facts=facts)


def _in_windows(
    opened: OpenedData,
    config: DataConfig,
    task: Task,
    preprocessing: Preprocessing,
    trust: Collection[str],
) -> OpenedData:
    """Return data with a sample for each window of a text, if the task has such."""
    columns = opened.train.table.columns
    cutter = WindowCutter.of(task, config, columns, preprocessing, trust)
    if cutter is None:
        return opened
    parts = {"train": opened.train, "validation": opened.validation, "test": opened.test}
    cut, notes = dict[str, RawPart](), list[str]()
    for name, part in parts.items():
        if part is not None:
            cut[name], told = in_windows(part, cutter, name)
            notes += told
    sizes = {name: len(part.table) for name, part in cut.items()}
    facts = replace(opened.facts, sizes=sizes, notes=(*opened.facts.notes, *notes))
    return replace(
        opened,
        train=cut["train"],
        validation=cut.get("validation"),
        test=cut.get("test"),
        facts=facts,
    )


def _opened(raw: RawData, task: Task, seed: int, *, is_new: bool = False) -> OpenedData:
    """Return the parts of the data, split as the config says."""
    parts, classes, on_labels = labelled(raw, task)
    if raw.config.split is None:
        notes = notes_on_copies(list(parts.values()), are_of_one_source=False)
        refuse_unseen_labels(parts, classes, None)
    else:
        # A run that has begun goes on as it was split.
        if is_new and raw.config.split.by is not None:
            refuse_flags_of_others(parts["train"].places["by"], raw.config.split.by)
        parts, notes = parted(parts["train"], raw.config.split, task, classes, seed)
    return _with_facts(raw, parts, classes, task, (*notes, *on_labels))


def _opened_again(raw: RawData, task: Task, seed: int, record: Record) -> OpenedData:
    """Return the data of a run that has begun; if it changed, known rows keep their part."""
    before = record.identity
    try:
        # Rows have kept their part once: drawn anew, those of the test could now be trained on.
        if before.is_kept:
            opened, _ = _opened_as_before(raw, task, seed, record)
        else:
            opened = _opened(raw, task, seed)
        changes = differences(before, opened.identity)
    except DataError:
        # If rows differ, that is the first cause of labels that nobody knows
        now = replace(raw.identity, classes=_found_classes(raw, task))
        changes = differences_of_contents(before, now)
        if not changes:
            raise
    else:
        count = mended(before, opened.identity)
        if not changes or count:
            return _as_recorded(opened, before, count)
    # Nothing has been trained on the changed data yet: a refusal leaves the run as it was.
    record.accept(changes)
    opened, lines = _opened_as_before(raw, task, seed, record)
    identity = opened.identity.after(before)
    return replace(opened, identity=identity, changes=(*changes, *lines))


def _as_recorded(opened: OpenedData, before: DataIdentity, num_mended: int) -> OpenedData:
    """Return data that a run has begun on, with a note on samples that were mended since."""
    # What was trained on before an earlier change must stay known.
    identity = replace(
        opened.identity,
        former=before.former,
        is_kept=before.is_kept,
        digest=before.digest,
        validated=before.validated,
    )
    if not num_mended:
        # Nothing has changed. From here on any sample may be trained on, so a sample that could
        # not be read before no longer counts as unread, unless reading it fails again.
        return replace(opened, identity=identity)
    # The order of samples is as before, so the run goes on where it was, not at the next epoch;
    # and its figures stay the mark to beat.
    identity = replace(
        identity, digest=before.training_digest, validated=before.validation_digest or None
    )
    rows = "1 sample" if num_mended == 1 else f"{num_mended} samples"
    note = f"{rows} that the run could not read before are others now: they count as mended"
    facts = replace(opened.facts, notes=(*opened.facts.notes, note))
    return replace(opened, identity=identity, facts=facts)


def _opened_as_before(
    raw: RawData, task: Task, seed: int, record: Record
) -> tuple[OpenedData, list[str]]:
    """Return data with kinds, classes and parts of a run, and lines on what is new."""
    raw = raw.of_kinds(record.kinds)
    known, renamed = record.identity.classes, list[str]()
    if record.trains and known is not None:
        known, renamed = _renamed(known, raw, task)
    parts, classes, _ = labelled(raw, task, known, record.identity.by_target)
    parts, lines = parted_as_before(parts, raw.config.split, record.identity, seed)
    is_split = raw.config.split is not None
    notes = notes_on_copies(list(parts.values()), are_of_one_source=is_split)
    return _with_facts(raw, parts, classes, task, notes), [*renamed, *lines]


def _renamed(known: tuple[str, ...], raw: RawData, task: Task) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes that a run continues with, and a line if others took their places."""
    found = _found_classes(raw, task)
    if found is None or len(found) != len(known) or set(found) <= set(known):
        return known, []
    moved = [f"{old!r} to {new!r}" for old, new in zip(known, found, strict=True) if old != new]
    return found, [f"outputs change their class: {', '.join(moved[:3])}"]


def _found_classes(raw: RawData, task: Task) -> tuple[str, ...] | None:
    """Return the classes that the data itself has; None if it has none, or its parts differ."""
    # The caller reports the error, if it is the first cause of a fault.
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
    """Return the parts with facts, identity and all notes."""
    notes = (*raw.notes, *notes, *notes_on_parts(parts, classes, task))
    sizes = {name: len(part.table) for name, part in parts.items()}
    # Redacted here, since facts are saved in the run folder.
    told = tuple(map(redacted, notes))
    counts = None if classes is None else parts["train"].counts(len(classes))
    train = parts["train"]
    facts = DataFacts(
        raw.inputs,
        raw.target,
        classes,
        told,
        sizes,
        dict(raw.kinds),
        counts=counts,
        by_target=classes_and_counts(train.beside, train.classes),
        of_bytes=tuple(n for n, column in train.table.columns.items() if is_of_bytes(column)),
    )
    hashes = {name: part.hashes for name, part in parts.items()}
    identity = DataIdentity.of(hashes, classes, train.classes)
    every = EpochOrder(sizes["train"])
    validation, test = parts.get("validation"), parts.get("test")
    return OpenedData(parts["train"], validation, test, facts, identity, every)
