"""Read data that the command line names, all of it, as samples of a run.

Columns, their kinds and the classes are the run's; the data itself decides nothing.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch

from finetune.config.data import DataConfig
from finetune.config.source_keys import (
    ArraysSource,
    AudioFolderSource,
    HuggingFaceSource,
    ImageFolderSource,
    Source,
    TextFolderSource,
)
from finetune.config.task_list_keys import AnyTask as Task, TaskList
from finetune.data.audio import notes_on_audio
from finetune.data.column_kinds import Kind, as_bytes, column_of
from finetune.data.columns import (
    choose_columns,
    end_like_images,
    image_columns,
    settle_columns,
    settled_for_loss,
)
from finetune.data.gaps import filled_columns, with_open_gaps
from finetune.data.identify.identified_files import identified
from finetune.data.identify.identity import hash_rows
from finetune.data.images import Images, images_of
from finetune.data.incoming.incoming_part import FILES_WITH_COLUMNS, Incoming
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.incoming.incoming_rows import as_files
from finetune.data.media.image_headers import look_at, notes_on
from finetune.data.opening import DataFacts
from finetune.data.parts.parting import RawPart, part_of
from finetune.data.parts.raw_data import table_of_kinds
from finetune.data.parts.unfit_cells import refuse_gaps_in
from finetune.data.readers.row_places import Places
from finetune.data.sources.open_source import open_source
from finetune.data.table import Column, Listed, Table
from finetune.data.targets.answers import joined_answers
from finetune.data.targets.encode import encode_target
from finetune.data.targets.joined import join_targets
from finetune.data.targets.labels import LabelRules
from finetune.data.targets.listed_targets import encode_listed, may_be_empty
from finetune.data.targets.loss_columns import mask_columns
from finetune.errors import DataError, Key, SeveralFaultsError, named

_IMAGE: Kind = "image"


@dataclass(frozen=True, slots=True)
class NamedData:
    """All samples of the data that was named.

    Args:
        part: Inputs and targets, before any transform.
        name: What was named, for messages.
        notes: Lines to report to the user on how it was read.
    """

    part: RawPart
    name: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataReader:
    """Reads data as samples of a run.

    Args:
        config: `data:` of the run's config.
        facts: Facts of the run's training data.
        task: Decides what the target means.
        seed: Seed for drawing images whose headers are read, if there are many.
        trust: Names of packages whose code may be imported.
    """

    config: DataConfig
    facts: DataFacts
    task: Task
    seed: int
    trust: Collection[str]

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns from which the target is made."""
        if isinstance(self.config.target, tuple):
            return self.config.target
        return () if self.facts.target is None else (self.facts.target,)

    def read_source(self, source: Source, key: Key) -> NamedData:
        """Return all samples of a source.

        Args:
            source: The config node.
            key: Position of the node in the config.

        Raises:
            DataError: it cannot be read, lacks a column, or has a label unknown to the run.
        """
        inputs, more = self.facts.inputs, self.config.loss_columns
        table = open_source(source, self.trust, key, {*inputs, *self.targets, *more})
        with _naming(table.name):
            table, target, rules = self._with_one_target(table)
            # Arrays are images by their shape; other sources hold names that must be read as such.
            if isinstance(source, ArraysSource):
                listed = set[str]()
            else:
                listed = {n for n, kind in self.facts.kinds.items() if "image" in kind}
            images = image_columns(self.config, inputs) | listed
            table = with_open_gaps(table, may_be_empty(self.config, self.task))
            for_loss = [*([] if target is None else [target]), *more]
            masks = mask_columns(self.config, self.task, target)
            table = settle_columns(table, inputs, for_loss, images, masks, source, key)
            # Hashes tell which rows the run was trained on.
            table = table_of_kinds(identified(table, None), self._kinds)
            return self._whole(table, target, rules)

    def read_input(self, place: str) -> NamedData:
        """Return the samples of a file, folder or standard input (`-`), with their targets.

        Raises:
            DataError: as `read_source`.
        """
        # Kinds of data that are no tables are read by the reader that training used.
        if (source := self._source_at(place)) is not None:
            with _naming(place):
                return self.read_source(source, ())
        parts = self._read_tables(place)
        name = "standard input" if place == "-" else place
        places = _places(parts)
        own = self.config.source or self.config.train
        with _naming(name):
            columns: dict[str, Column] = {
                column: column_of(column, _values(parts, column), kind, places, own)
                for column, kind in self._kinds.items()
            }
            for column in (*self.targets, *self.config.loss_columns):
                values = _values(parts, column)
                is_text = all(isinstance(value, str) for value in values)
                columns[column] = Listed(values, "cells" if is_text else "things")
                if values and all(isinstance(value, Path) for value in values):
                    columns[column] = images_of(values, "mask")
            count = sum(len(part.names) for part in parts)
            notes = tuple(note for part in parts for note in part.notes)
            table = Table(columns, torch.arange(count), name, places=places, notes=notes)
            table, target, rules = self._with_one_target(table)
            for_loss = [*([] if target is None else [target]), *self.config.loss_columns]
            masks = mask_columns(self.config, self.task, target)
            table = with_open_gaps(table, set(for_loss) & may_be_empty(self.config, self.task))
            settled = {
                name: settled_for_loss(name, table, is_mask=name in masks) for name in for_loss
            }
            table = replace(table, columns={**table.columns, **settled})
            return self._whole(identified(table, None), target, rules)

    def _read_tables(self, place: str) -> list[Incoming]:
        """Return the samples of a place as prediction reads them, with the target columns."""
        # As things, of any kind: what the target means is the task's business.
        for_loss = (*self.targets, *self.config.loss_columns)
        targets: dict[str, Kind] = dict.fromkeys(for_loss, "thing")
        masks = mask_columns(self.config, self.task, self.facts.target).intersection(targets)
        try:
            parts = read_incoming(place, self.config, {**self._kinds, **targets}, sys.stdin)
            # Names of masks are relative to their table, as those of images.
            files = {name for name in masks if _are_names(_values(parts, name))}
            if not files:
                return parts
            if place == "-":  # which cannot be read twice
                return [_with_masks(part, files) for part in parts]
            kinds = {**self._kinds, **targets, **dict.fromkeys(files, _IMAGE)}
            return read_incoming(place, self.config, kinds, sys.stdin)
        except DataError as error:
            if error.hint == FILES_WITH_COLUMNS:
                needed = named([*self._kinds, *targets])
                error.message = f"is no table; an evaluation needs the columns {needed}"
            raise

    @property
    def _kinds(self) -> dict[str, Kind]:
        """The kind of each input column in training."""
        return {name: self.facts.kinds[name] for name in self.facts.inputs}

    def _source_at(self, place: str) -> Source | None:
        """Return the run's own source with another path, if it is no kind of table; else None."""
        own, is_folder = self.config.source or self.config.train, Path(place).is_dir()
        match own:
            case ArraysSource() if place != "-":
                return own.model_copy(update={"path": place})
            case (
                ImageFolderSource() | TextFolderSource() | AudioFolderSource() | HuggingFaceSource()
            ) if is_folder:
                # The bound of the run's own data says nothing about another folder.
                return own.model_copy(update={"path": place, "within": None})
            case _:
                return None

    def _with_one_target(self, table: Table) -> tuple[Table, str | None, LabelRules]:
        """Return the table with a single target column, its name, and the rules for its labels.

        Raises:
            DataError: a column is missing.
        """
        facts = self.facts
        target = self.config.target if isinstance(self.config.target, tuple) else facts.target
        named = self.config.model_copy(update={"inputs": facts.inputs, "target": target})
        tables: Mapping[str, Table] = {"train": table}
        if self.task.learns == "span":
            named, tables = joined_answers(named, tables)
        named, tables, rules = join_targets(named, tables, ())
        needs_target = facts.target is not None
        choose_columns(named, tables["train"].columns, needs_target=needs_target)
        return tables["train"], facts.target, rules

    def _whole(self, table: Table, target: str | None, rules: LabelRules) -> NamedData:
        """Return a table as samples: targets encoded, rows hashed, notes collected."""
        inputs, classes = self.facts.inputs, self.facts.classes
        on_bytes = list[str]()
        of_bytes = {
            name: as_bytes(name, table.columns[name], table.told, on_bytes.append)
            for name in self.facts.of_bytes
        }
        table = replace(table, columns={**table.columns, **of_bytes})
        refuse_gaps_in(table, inputs, filled_columns(self.config))
        encoded = None
        if target is not None and not isinstance(self.task, TaskList):
            encoded = encode_target(
                table, target, self.task, classes=classes, part=table.name, rules=rules
            )
        known = {name: one.names for name, one in self.facts.by_target.items()}
        listed = encode_listed(table, self.task, classes=known, part=table.name, rules=rules)
        hashes = hash_rows(table.columns, inputs)
        notes = (
            *table.notes,
            *on_bytes,
            *(line for name in inputs for line in self._on_pixels(table, name)),
        )
        notes += tuple(notes_on_audio({name: [table.columns[name]] for name in inputs}, self.seed))
        notes += listed.notes
        part = part_of(table, self.config, inputs, target, encoded, hashes, listed)
        return NamedData(part, table.name, notes)

    def _on_pixels(self, table: Table, name: str) -> list[str]:
        """Return notes on images that are converted when they are read."""
        column = table.columns[name]
        if not isinstance(column, Images):
            return []
        looked = look_at(column, self.seed)
        notes = notes_on(name, [looked])
        coloured = sum(header.is_colour for header in looked.headers.values())
        if coloured and column.mode == "L":
            of = len(looked.headers)
            notes.append(
                f"column {name!r}: {coloured:,} of {of:,} images have colour, read as grey"
            )
        return notes


def _are_names(values: Sequence[object]) -> bool:
    """Tell whether values are texts that end like image files."""
    return all(isinstance(v, str) for v in values) and end_like_images(Listed(values, "cells"))


def _with_masks(part: Incoming, columns: Collection[str]) -> Incoming:
    """Return a part of standard input whose names of masks are paths, bounded as names of images.

    Raises:
        DataError: a file is missing, or lies outside of the current folder.
    """
    paths = {name: as_files(part.columns[name], Path(), part.names, _IMAGE) for name in columns}
    return replace(part, columns={**part.columns, **paths})


def _values(parts: Sequence[Incoming], column: str) -> list[object]:
    """Return the values of a column over all parts."""
    return [value for part in parts for value in part.columns[column]]


def _places(parts: Sequence[Incoming]) -> Places:
    """Return the places of all rows, one part after the other."""
    sizes = [len(part.names) for part in parts]
    starts: list[int] = []
    lines: list[int] = []
    # Not strict: `accumulate` ends with one number more, the count of all rows.
    for part, size, before in zip(parts, sizes, accumulate([0, *sizes]), strict=False):
        starts += [before + start for start in part.places.starts]
        lines += [*part.places.lines] or [0] * size
    files = [file for part in parts for file in part.places.files]
    return Places(tuple(files), tuple(starts), lines)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Make errors name the data, and not a config key: the config is about the run's own data."""
    try:
        yield
    except (DataError, SeveralFaultsError) as error:
        for one in error.errors if isinstance(error, SeveralFaultsError) else (error,):
            if one.where is None:
                one.key, one.where = (), name
                # The message need not name it once more.
                one.message = one.message.removeprefix(f"{name!r} ")
        raise
