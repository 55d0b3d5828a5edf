"""Find the tables of a folder that name its images or recordings, and the label of each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.data.table import Listed
from finetune.errors import DataError, named
from finetune.starting.found_data import DataKind, FoundData, Keys, keys_of_table, opened
from finetune.starting.found_tables import part_of

_ENDINGS: Mapping[DataKind, Collection[str]] = {
    "images": IMAGE_ENDINGS,
    "recordings": AUDIO_ENDINGS,
}


@dataclass(frozen=True, slots=True)
class _Naming:
    """A table that names files.

    Args:
        keys: Keys of its source.
        columns: Names of its columns.
        told: Lines on how it was found, for the user.
    """

    keys: Keys
    columns: frozenset[str]
    told: tuple[str, ...]


def files_of_tables(
    path: Path, files: Sequence[Path], tables: Sequence[Path], kind: DataKind
) -> FoundData | None:
    """Return images or recordings that tables name, or None if no table does.

    Args:
        path: The folder.
        files: All files below it.
        tables: The tables among these.
        kind: What the other files are.

    Raises:
        DataError: there are tables, but they name none of the files, in one folder, that are there.
    """
    samples = [file for file in files if file.suffix.lower() in _ENDINGS[kind]]
    found = {table: _naming(table, samples, kind) for table in tables}
    naming = {table: one for table, one in found.items() if one is not None}
    if not naming:
        if tables and len({file.parent for file in samples}) == 1:
            raise _names_none(path, tables[0], samples[0], kind)
        return None
    parts = {part_of(table, path): table for table in naming}
    if "train" not in parts:
        first, *others = naming
        return _of_one(naming[first], first, others)
    return _of_parts(parts, naming)


def _naming(table: Path, samples: Sequence[Path], kind: DataKind) -> _Naming | None:
    """Return how a table names files, or None if it names none."""
    keys, told = keys_of_table(table)
    columns = opened("table", {"source": keys}, told).columns
    for name, column in columns.items():
        if not isinstance(column, Listed) or not len(column):
            continue
        first = str(column.values[0])
        places = [file for file in samples if f"/{file.as_posix()}".endswith(f"/{first}")]
        if not first or not places:
            continue
        # The same name may stand in several parts: the nearest one to the table is meant.
        place = min(places, key=lambda file: (not file.is_relative_to(_beside(table)), str(file)))
        folder = Path(str(place).removesuffix(first))
        if folder.resolve() != table.parent.resolve():
            keys["folder"] = str(folder)
        said = f"{kind}: column {name} of {table.name} names them"
        return _Naming(keys, frozenset(columns), (*told, said))
    return None


def _beside(table: Path) -> Path:
    """Return the folder of files that a table of a part is about: `train/` of `train.csv`."""
    return table.parent / table.name.partition(".")[0]


def _of_one(one: _Naming, table: Path, others: Sequence[Path]) -> FoundData:
    """Return the files that one table names; further tables are told."""
    aside = f"{named([other.name for other in others])}: left out, since {table.name} is taken"
    told = [*one.told, aside] if others else one.told
    return opened("table", {"source": one.keys}, told)


def _of_parts(parts: Mapping[str | None, Path], naming: Mapping[Path, _Naming]) -> FoundData:
    """Return the files that tables called train, validation and test name; others are told."""
    sources: dict[str, Keys] = {}
    told: list[str] = []
    train = naming[parts["train"]]
    taken = {parts[part] for part in ("train", "validation", "test") if part in parts}
    for part in ("train", "validation", "test"):
        if part not in parts:
            continue
        one = naming[parts[part]]
        if lacking := train.columns - one.columns:
            told.append(
                f"{parts[part].name} is left out: it has no column {named(sorted(lacking))}; "
                "predict takes it"
            )
            continue
        sources[part] = one.keys
        told += one.told
    if aside := [table.name for table in naming if table not in taken]:
        told.append(f"{named(aside)}: left out, since {parts['train'].name} is taken")
    if len(sources) == 1:
        return opened("table", {"source": train.keys}, told)
    return opened("table", sources, [f"parts: {', '.join(sources)}, as the tables say", *told])


def _names_none(path: Path, table: Path, sample: Path, kind: DataKind) -> DataError:
    """Return the error for a table beside files of which it names none."""
    beside = sample.is_relative_to(table.parent)
    example = str(sample.relative_to(table.parent)) if beside else sample.name
    return DataError(
        f"holds {kind} and {table.name}, which names none of them",
        where=str(path),
        hint=f"a column with the whole names, such as {example}, with endings and without "
        "backslashes",
    )
