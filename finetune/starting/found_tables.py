"""Find out which table of a folder is meant: the only one, or those of parts, also in shards."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.sources.folders import PARTS
from finetune.errors import DataError, named
from finetune.starting.found_data import FoundData, Keys, found_in_file, keys_of_table, opened

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""The end of a name such as `train-00000-of-00002`, as the hub has it."""


def tables_of_folder(path: Path, files: Sequence[Path], tables: Sequence[Path]) -> FoundData:
    """Return the one table of a folder, or those of its parts.

    Args:
        path: The folder.
        files: All files below it.
        tables: The tables among these.

    Raises:
        DataError: there is no table, or none that is the one to learn from.
    """
    if not tables:
        endings = ", ".join(sorted({file.suffix or "without an ending" for file in files})[:5])
        raise DataError(
            f"holds no table, images, texts or recordings; there are files of {endings}",
            where=str(path),
            hint="init reads csv, tsv, JSON, Parquet, npz, and folders of images, texts or sounds",
        )
    if len(tables) == 1:
        return found_in_file(tables[0])
    parts: dict[str, list[Path]] = {}
    for file in tables:
        if (part := part_of(file, path)) is not None:
            parts.setdefault(part, []).append(file)
    # Only if each of them is a part: a table beside them may be the one that is meant.
    if "train" in parts and sum(map(len, parts.values())) == len(tables):
        return _tables_of_parts(path, parts)
    names = {file: _names_of(file) for file in tables}
    is_one_folder = len({file.parent for file in tables}) == 1
    if is_one_folder and len({tuple(columns) for columns in names.values()}) == 1:
        pattern = tables[0].parent / f"*{tables[0].suffix}"
        hint = f"init {tables[0]} takes one; data.source.path: {pattern} would take all"
        raise DataError(f"holds {len(tables)} tables alike", where=str(path), hint=hint)
    raise _several_tables(path, tables)


def _several_tables(path: Path, tables: Sequence[Path]) -> DataError:
    """Return the error for a folder with tables of which none is the one to learn from."""
    return DataError(
        f"holds several tables: {named([str(file.relative_to(path)) for file in tables])}",
        where=str(path),
        hint=f"name the one to learn from, such as finetune init {tables[0]}",
    )


def part_of(file: Path, path: Path) -> str | None:
    """Return the part of the data that a table holds, by its own name or that of its folder.

    Args:
        file: The table.
        path: The folder of all data; folders above it are not asked.
    """
    folders = [folder.lower() for folder in reversed(file.relative_to(path).parts[:-1])]
    return next((PARTS[name] for name in (_stem(file), *folders) if name in PARTS), None)


def _stem(file: Path) -> str:
    """Return the name of a table in small letters, without endings and number of a shard."""
    return _SHARD.sub("", file.name.partition(".")[0].lower())


def _names_of(file: Path) -> list[str]:
    """Return the columns of a table."""
    return sorted(opened("table", {"source": keys_of_table(file)[0]}).columns)


def _pattern_of(files: Sequence[Path]) -> Path | None:
    """Return the pattern that names the shards of one table; None if files are no such shards."""
    names = [file.name.partition(".") for file in files]
    if not all(_SHARD.search(stem) for stem, _, _ in names):
        return None
    patterns = {
        file.parent / f"{_SHARD.sub('-*', stem)}{dot}{endings}"
        for file, (stem, dot, endings) in zip(files, names, strict=True)
    }
    return patterns.pop() if len(patterns) == 1 else None


def _tables_of_parts(path: Path, parts: Mapping[str, Sequence[Path]]) -> FoundData:
    """Return tables called train, validation and test as parts; those without labels are told.

    Raises:
        DataError: there are several tables of one part.
    """
    train = set(_names_of(parts["train"][0]))
    told = []
    sources: dict[str, Keys] = {}
    for part in ("train", "validation", "test"):
        if part not in parts:
            continue
        first = parts[part][0]
        keys, said = keys_of_table(first)
        if len(parts[part]) > 1:
            if (pattern := _pattern_of(parts[part])) is None:
                raise _several_tables(path, parts[part])
            keys["path"] = str(pattern)
        if lacking := train - set(_names_of(first)):
            told.append(
                f"{first.name} is left out: it has no column {named(sorted(lacking))}; "
                "predict takes it"
            )
            continue
        sources[part] = keys
        told += said
    if len(sources) == 1:
        return opened("table", {"source": sources["train"]}, told)
    return opened("table", sources, [f"parts: {', '.join(sources)}, as the tables say", *told])
