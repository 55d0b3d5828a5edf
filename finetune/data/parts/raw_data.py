"""Read sources into the columns in use, before targets are encoded and rows are split."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from finetune.config.data import DataConfig
from finetune.config.task_list_keys import AnyTask as Task, TaskList
from finetune.data.audio import notes_on_audio
from finetune.data.cells import read_cells
from finetune.data.column_kinds import Kind, as_kind, kind_of
from finetune.data.columns import (
    choose_columns,
    columns_in_use,
    image_columns,
    placing_columns,
    settle_columns,
    tokenized_columns,
)
from finetune.data.gaps import filled_columns, with_open_gaps
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.identify.identified_files import all_identified
from finetune.data.identify.identity import DataIdentity, KnownBy, RowHashes
from finetune.data.identify.row_hashes import row_hashes
from finetune.data.media.image_headers import read_alike
from finetune.data.parts.misread_texts import notes_on_encoding
from finetune.data.parts.odd_numbers import notes_on_fractions, notes_on_numbers
from finetune.data.parts.unfit_cells import refuse_gaps_in, refuse_unfit_cells
from finetune.data.readers.chunks import refuse_absent
from finetune.data.sources.open_source import open_source, sources_of
from finetune.data.sources.unlike_files import notes_on_unlike_files
from finetune.data.table import Column, Table
from finetune.data.targets.answers import joined_answers, with_contexts
from finetune.data.targets.joined import join_targets
from finetune.data.targets.labels import LabelRules
from finetune.data.targets.listed_targets import (
    may_be_empty,
    refuse_missing_targets,
    with_listed_targets,
)
from finetune.data.targets.loss_columns import (
    mask_columns,
    refuse_idle_loss_columns,
    refuse_unknown_companions,
)
from finetune.data.targets.words import with_words
from finetune.errors import DataError, Faults
from finetune.models.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class RawData:
    """The columns in use of every source.

    Args:
        config: `data:` of the config, with one target column.
        tables: Tables by part; one source that is split later counts as training.
        hashes: Hashes of the rows of each table.
        inputs: Names of the input columns.
        target: Name of the target column; None if there is none.
        kinds: Kind of each input column.
        rules: How labels become classes.
        notes: Lines to report to the user on how the columns were read.
    """

    config: DataConfig
    tables: Mapping[str, Table]
    hashes: Mapping[str, RowHashes]
    inputs: tuple[str, ...]
    target: str | None
    kinds: Mapping[str, Kind]
    rules: LabelRules
    notes: tuple[str, ...]

    @property
    def identity(self) -> DataIdentity:
        """Identity of the rows as they are in the sources; without classes, not known yet."""
        return DataIdentity.of(self.hashes, None)

    def of_kinds(self, kinds: Mapping[str, Kind]) -> "RawData":
        """Return this data with its inputs as the kinds that training had.

        Raises:
            DataError: a value is of another kind.
        """
        kinds = {name: kinds.get(name, kind) for name, kind in self.kinds.items()}
        tables = {part: table_of_kinds(table, kinds) for part, table in self.tables.items()}
        return replace(self, tables=tables, kinds=kinds)


def read_data(
    config: DataConfig,
    task: Task,
    *,
    seed: int,
    trust: Collection[str],
    files: KnownFiles | None,
    head: Sequence[str],
    known_by: KnownBy | None = None,
    preprocessing: Preprocessing | None = None,
) -> RawData:
    """Return the columns in use of all sources, with hashes of their rows.

    Args:
        config: `data:` of the config.
        task: Decides whether a target is needed.
        seed: Seed for drawing images whose headers are read, if there are many.
        trust: Names of packages whose code may be imported.
        files: Hashes of image files from earlier runs; None to read all files.
        head: Names of the outputs of the network's pretrained head, in order.
        known_by: What identified images when the run began; None for a new run. What a run that
            has begun cannot take is told as a change of its data, later.
        preprocessing: What the network was pretrained with; None if that is not known.

    Raises:
        DataError: a source or a column is not what the config says.
    """
    config, tables, rules, inputs, target = find_columns(config, task, trust, files, tuple(head))
    on_fractions = {n: notes_on_fractions(n, tables["train"].columns[n]) for n in inputs}
    tables = _settled(config, tables, task, inputs, target)
    if task.learns == "tags":
        tables = with_words(tables, inputs, tokenized_columns(config))
    if task.learns == "span":
        tables = with_contexts(tables, inputs[1])
    tables, on_files = _with_files(config, tables, inputs, files, known_by, seed)
    of_tables = (note for table in tables.values() for note in table.notes)
    read = {part: _read_cells(table, inputs, config) for part, table in tables.items()}
    # Before rows are hashed: NaN in an input would become part of the run's identity.
    if known_by is None:
        refuse_unfit_cells(config, task, tables, read, target, preprocessing)
    else:
        _refuse_gaps(tables, inputs, filled_columns(config))
    may_be_numbers = {*inputs, *_for_loss(config, target)} - tokenized_columns(config)
    on_cells = (
        note
        for part, table in tables.items()
        for note in notes_on_unlike_files(table, sorted(may_be_numbers), read[part])
    )
    on_numbers = notes_on_numbers(read["train"], inputs, config, on_fractions)
    on_encoding = notes_on_encoding(config, tables)
    notes = (*of_tables, *on_encoding, *on_files, *on_cells, *on_numbers)
    hashes = {part: row_hashes(t, inputs, read[part]) for part, t in tables.items()}
    # Of the training part alone: prediction must read what training read, not what validation held.
    kinds = {name: kind_of(column, name, config) for name, column in read["train"].items()}
    return RawData(config, tables, hashes, inputs, target, kinds, rules, notes)


class FoundColumns(NamedTuple):
    """The sources of a config, read, and the names of the columns in use; see `RawData`."""

    config: DataConfig
    tables: dict[str, Table]
    rules: LabelRules
    inputs: tuple[str, ...]
    target: str | None


def find_columns(
    config: DataConfig,
    task: Task,
    trust: Collection[str],
    files: KnownFiles | None,
    head: tuple[str, ...] = (),
) -> FoundColumns:
    """Read all sources and find the columns that the config names; for arguments see `read_data`.

    Raises:
        FinetuneError: a source cannot be read, or lacks a column.
    """
    if task.learns == "nothing" and config.target is not None:
        raise DataError(
            f"has no effect: task {task.type!r} learns from its inputs alone, as its keys say",
            hint="leave it out",
            key=("data", "target"),
        )
    refuse_idle_loss_columns(config, task)
    config = with_listed_targets(config, task)
    tables = _read_tables(config, trust, files)
    if task.learns == "span":
        # Before targets are joined: two columns are an answer and its place, not two targets.
        config, tables = joined_answers(config, tables)
    config, tables, rules = join_targets(config, tables, head)
    inputs, target = _chosen(config, task, tables)
    _refuse_missing_places(config, tables["train"])
    refuse_unknown_companions(config, inputs, target)
    return FoundColumns(config, tables, rules, inputs, target)


def _chosen(
    config: DataConfig, task: Task, tables: Mapping[str, Table]
) -> tuple[tuple[str, ...], str | None]:
    """Return the input columns, and the target of a single task that has one.

    Raises:
        DataError: a column is missing, or it is unclear which ones are meant.
    """
    known = tables["train"].columns
    if not isinstance(task, TaskList):
        needs_target = task.learns not in ("nothing", "any")
        inputs, target = choose_columns(config, known, needs_target=needs_target)
        # A column that has the usual name of a target is none for a task without one.
        return inputs, None if task.learns == "nothing" else target
    for table in tables.values():
        refuse_missing_targets(task, config.inputs or (), table.columns)
    inputs, _ = choose_columns(config, known, needs_target=False)
    refuse_missing_targets(task, inputs, known)
    return inputs, None


def _for_loss(config: DataConfig, target: str | None) -> list[str]:
    """Return the columns that the loss takes."""
    return [*([] if target is None else [target]), *config.loss_columns]


def _settled(
    config: DataConfig,
    tables: Mapping[str, Table],
    task: Task,
    inputs: tuple[str, ...],
    target: str | None,
) -> dict[str, Table]:
    """Return the tables with the columns in use, each of a definite kind.

    Raises:
        FinetuneError: a part lacks a column, or a column is not what the config says.
    """
    named = config.model_copy(update={"inputs": inputs, "target": target})
    for_loss, masks = _for_loss(config, target), mask_columns(config, task, target)
    is_image, gappy = image_columns(config, inputs), may_be_empty(config, task)
    result = {}
    for part, (source, key) in sources_of(config).items():
        # Columns are chosen by the training part; every other part must have the same ones.
        choose_columns(named, tables[part].columns, needs_target=target is not None)
        open_ = with_open_gaps(tables[part], gappy)
        settled = settle_columns(open_, inputs, for_loss, is_image, masks, source, key)
        result[part] = _with_places(settled, open_, config, part)
    return result


def _with_files(
    config: DataConfig,
    tables: Mapping[str, Table],
    inputs: Sequence[str],
    files: KnownFiles | None,
    known_by: KnownBy | None,
    seed: int,
) -> tuple[dict[str, Table], list[str]]:
    """Return the tables with images and recordings identified, and notes on how they are read."""
    skips = config.on_error == "skip"
    copies_matter = config.split is not None and config.split.copies != "leave"
    # Before headers are read: from here on an image that is replaced is noticed.
    identified, on_files = all_identified(
        tables, files, known_by=known_by, copies_matter=copies_matter, skips=skips
    )
    alike, on_images = read_alike(identified, seed, skips=skips)
    recordings = {name: [table.columns[name] for table in alike.values()] for name in inputs}
    return alike, [*on_files, *on_images, *notes_on_audio(recordings, seed)]


def _refuse_gaps(
    tables: Mapping[str, Table], inputs: Sequence[str], filled: Collection[str]
) -> None:
    """Raise for gaps in the inputs of any part.

    Raises:
        FinetuneError: there is one. Faults of several columns are reported at once.
    """
    faults = Faults()
    for table in tables.values():
        with faults.noted():
            refuse_gaps_in(table, inputs, filled)
    faults.raise_if_any()


def _refuse_missing_places(config: DataConfig, table: Table) -> None:
    """Raise `DataError` if a column is not there that says where samples go, or how often."""
    for key, name in placing_columns(config).items():
        refuse_absent(name, table.columns, key)


def _with_places(settled: Table, raw: Table, config: DataConfig, part: str) -> Table:
    """Return settled columns with those that say where samples go, or how often they are drawn."""
    # Only the training source is split, and only its samples are drawn by weight.
    names = placing_columns(config).values() if part == "train" else ()
    places = {name: raw.columns[name] for name in names if name not in settled.columns}
    return replace(settled, columns={**settled.columns, **places})


def table_of_kinds(table: Table, kinds: Mapping[str, Kind]) -> Table:
    """Return a table with its inputs as the kinds that training had.

    Raises:
        DataError: a value is of another kind.
    """
    inputs = {
        name: as_kind(name, table.columns[name], kind, table.told) for name, kind in kinds.items()
    }
    return replace(table, columns={**table.columns, **inputs})


def _read_cells(table: Table, inputs: Sequence[str], config: DataConfig) -> dict[str, Column]:
    """Return the inputs with table cells read as numbers or texts."""
    texts = tokenized_columns(config)
    return {name: read_cells(table.columns[name], as_text=name in texts) for name in inputs}


def _read_tables(
    config: DataConfig, trust: Collection[str], files: KnownFiles | None
) -> dict[str, Table]:
    """Return the table of each source, by part.

    Raises:
        FinetuneError: one cannot be read. Faults of several sources are reported at once.
    """
    wanted, tables, faults = columns_in_use(config), dict[str, Table](), Faults()
    for part, (source, key) in sources_of(config).items():
        with faults.noted():
            tables[part] = open_source(source, trust, key, wanted, files)
    faults.raise_if_any()
    return tables
