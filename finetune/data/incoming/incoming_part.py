"""One part of the samples that are predicted: a table, plain files, or standard input."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.data import DataConfig
from finetune.config.source_keys import Source
from finetune.data.column_kinds import Kind
from finetune.data.readers.encodings import really_utf8
from finetune.data.readers.row_places import Places
from finetune.errors import DataError, FinetuneError, named

FILES_WITH_COLUMNS = (
    "give them as a table (.csv, .tsv, .jsonl, .parquet), or as JSON objects, one a line"
)


@dataclass(frozen=True, slots=True)
class Incoming:
    """Samples of one table, of the plain files of a folder, or of standard input."""

    source: str
    """Name of where they come from, for messages."""
    names: list[str]
    """A name for each sample."""
    columns: Mapping[str, Sequence[Any]]
    """Raw values of each input column."""
    places: Places
    """Place of each sample, for messages."""
    notes: tuple[str, ...] = ()
    """Lines to report to the user on how they were read."""
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """All columns of a table as they are written in it, where they were asked for."""
    bad: Mapping[int, FinetuneError] = field(default_factory=dict)
    """Samples that cannot be read, by position, where they are passed over."""

    def files(self) -> Iterator[Path]:
        """Yield the files that the samples are read from, with those that a table names."""
        yield from map(Path, self.places.files)
        for column in self.columns.values():
            if isinstance(column, list):
                yield from (value for value in column if isinstance(value, Path))


def trained_on(config: DataConfig) -> Source | None:
    """Return the source of the training samples."""
    return config.source or config.train


def the_column(kinds: Mapping[str, Kind], where: object, other: str | None = None) -> str:
    """Return the only input column; raise if there are several, as the value has no name.

    Args:
        kinds: Kind of each input column.
        where: Place of the value, for messages.
        other: What the value is, in words, if it is a file that is not text.
    """
    # Which column a bare value belongs to would be a guess.
    if len(kinds) > 1:
        found = "" if other is None else f"is {other}, and "
        raise DataError(
            f"{found}the network takes the columns {named(kinds)}",
            where=str(where),
            hint=FILES_WITH_COLUMNS,
        )
    return next(iter(kinds))


def is_image_kind(kind: Kind | None) -> bool:
    """Tell whether a kind is one of images."""
    return kind in ("image", "grey image")


def notes_on_encoding(part: Incoming, columns: Collection[str], encoding: str) -> tuple[str, ...]:
    """Return notes on texts that are UTF-8, and were read in another encoding.

    Args:
        part: The samples.
        columns: Columns that the network takes.
        encoding: The encoding of the training data, which new files are read in too.
    """
    found, _ = really_utf8({name: part.columns[name] for name in columns}, encoding)
    of = len(part.names)
    return tuple(
        f"{len(rows):,} of {of:,} texts of {name!r} are valid UTF-8 and read as {encoding}, as "
        f"the training data were, such as {part.names[rows[0]]}"
        for name, rows in found.items()
    )
