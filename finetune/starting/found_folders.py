"""Find out what a folder holds: class folders, a table, tables of parts, images with labels."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.folders import AUDIO_ENDINGS, IMAGE_ENDINGS, PARTS, files_below
from finetune.data.table import Listed
from finetune.errors import DataError, named
from finetune.starting.found_data import (
    DataKind,
    FoundData,
    Keys,
    found_in_file,
    is_table,
    keys_of_table,
    opened,
    refuse_missing,
    without_key,
)
from finetune.starting.other_layouts import refuse_boxes, refuse_masks

_TEXT_ENDINGS = frozenset({".txt", ".md", ""})
_OF_KIND: dict[DataKind, str] = {
    "images": "imagefolder",
    "texts": "textfolder",
    "recordings": "audiofolder",
}
_SHARE = 0.5
"""Share of the files of a folder from which on they say what it holds."""
_NAMED_LABEL = r"^(.+?)[-_ .]?\d+\.\w+$"
"""Finds the label `cat` in `cat_001.jpg` and `cat.1.jpg`."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""The end of a name such as `train-00000-of-00002`, as the hub has it."""


def find_data(path: Path) -> FoundData:
    """Return the data at a path.

    Raises:
        DataError: there is none that a config could begin with; one line says why.
    """
    refuse_missing(path)
    if not path.is_dir():
        return found_in_file(path)
    try:
        return _found_in_folder(path)
    except DataError as error:
        raise without_key(error) from error


def _found_in_folder(path: Path) -> FoundData:
    """Return the data of a folder."""
    if (path / "metrics.jsonl").is_file() and (path / "config.yaml").is_file():
        hint = f"finetune predict {path} new.csv"
        raise DataError("is the folder of a run", where=str(path), hint=hint)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _of_datasets(path)
    files = [file for file in files_below(path) if file.suffix.lower() not in (".yaml", ".yml")]
    files = [file for file in files if "runs" not in file.relative_to(path).parts[:1]]
    if not files:
        raise DataError("is empty: it holds no files", where=str(path), hint="put your data there")
    refuse_boxes(path, files)
    tables = [file for file in files if is_table(file) or file.suffix.lower() == ".npz"]
    kind = _kind_of(files)
    labelled = [file for file in tables if file.suffix.lower() != ".npz"]
    found = _images_of_a_table(path, files, labelled) if kind == "images" else None
    if found is not None:
        return found
    if kind is None:
        return _of_tables(path, files, tables)
    return _of_files(path, files, kind)


def _of_datasets(path: Path) -> FoundData:
    """Return a data set as the `datasets` library saves it."""
    parts = {
        PARTS[entry.name]: entry.name
        for entry in sorted(path.iterdir())
        if entry.is_dir() and entry.name in PARTS
    }
    if "train" not in parts:
        return opened("table", {"source": {"type": "huggingface", "path": str(path)}})
    sources: dict[str, Keys] = {
        part: {"type": "huggingface", "path": str(path), "part": parts[part]}
        for part in ("train", "validation", "test")
        if part in parts
    }
    return opened("table", sources)


def _kind_of(files: Sequence[Path]) -> DataKind | None:
    """Return what most files are if they are samples; None for tables and anything else."""
    counts = Counter(map(_kind_of_file, files))
    if counts["table"] and not (counts["images"] or counts["recordings"]):
        return None
    for kind in ("images", "recordings", "texts"):
        if counts[kind] >= _SHARE * len(files):
            return kind
    return None


def _kind_of_file(file: Path) -> str:
    """Return what a file is by its ending."""
    ending = file.suffix.lower()
    if ending in IMAGE_ENDINGS:
        return "images"
    if ending in AUDIO_ENDINGS:
        return "recordings"
    if is_table(file) or ending == ".npz":
        return "table"
    return "texts" if ending in _TEXT_ENDINGS else "other"


def _of_files(path: Path, files: Sequence[Path], kind: DataKind) -> FoundData:
    """Return samples in class folders, in parts of these, or with labels in their names."""
    kept = [file for file in files if _kind_of_file(file) == kind]
    folders = sorted({file.relative_to(path).parts[0] for file in kept if file.parent != path})
    parts = {PARTS[name.lower()]: path / name for name in folders if name.lower() in PARTS}
    if "train" in parts and len(parts) > 1:
        return _of_parts(path, parts, kept, kind)
    if len(folders) == 1 and not any(file.parent == path for file in kept):
        # A folder around the class folders, as archives have it.
        return _of_files(path / folders[0], files, kind)
    if len(folders) > 1:
        refuse_masks(path, kept)
        return _of_class_folders(path, kept, kind)
    return _of_names(path, kept, kind)


def _of_class_folders(path: Path, kept: Sequence[Path], kind: DataKind) -> FoundData:
    """Return samples in one folder per class."""
    aside = [file for file in kept if file.parent == path]
    keys = {"type": _OF_KIND[kind], "path": str(path)} | _encoding(kept, kind)
    told = [f"{len(aside)} {kind} beside the class folders are left out"] if aside else []
    return opened(kind, {"source": keys}, told)


def _of_parts(
    path: Path, parts: dict[str, Path], kept: Sequence[Path], kind: DataKind
) -> FoundData:
    """Return samples in folders of parts; a part whose files have no labels is told."""
    told = []
    sources: dict[str, Keys] = {}
    for part in ("train", "validation", "test"):
        if part not in parts:
            continue
        folder = parts[part]
        files = [file for file in kept if file.is_relative_to(folder)]
        try:
            sources[part] = _labelled(folder, files, kind)
        except DataError:
            if part == "train":
                raise
            told.append(
                f"{folder.name} is left out: nothing tells the labels of its files; predict takes "
                "them"
            )
    if len(sources) == 1:
        return opened(kind, {"source": sources["train"]}, told)
    return opened(kind, sources, [f"parts: {', '.join(sources)}, as the folders are called", *told])


def _labelled(folder: Path, files: Sequence[Path], kind: DataKind) -> Keys:
    """Return the keys that read the files of a part: by class folders, or by their names.

    Raises:
        DataError: nothing tells their labels.
    """
    if any(file.parent != folder for file in files):
        return {"type": _OF_KIND[kind], "path": str(folder)} | _encoding(files, kind)
    return _of_names(folder, files, kind).first


def _of_names(path: Path, kept: Sequence[Path], kind: DataKind) -> FoundData:
    """Return samples whose own names tell the label, or refuse them."""
    if len(kept) >= 4:
        keys = {"type": _OF_KIND[kind], "path": str(path), "label": {"regex": _NAMED_LABEL}}
        try:
            found = opened(kind, {"source": keys | _encoding(kept, kind)})
        except DataError:  # a name without a number
            found = None
        column = None if found is None else found.columns["label"]
        if found is not None and isinstance(column, Listed):
            classes = set(column.values)
            if 1 < len(classes) <= len(kept) / 2:
                said = f"labels: {named(sorted(classes))}, found in names such as {kept[0].name!r}"
                return FoundData(kind, found.sources, found.columns, found.num_rows, (said,))
    raise DataError(
        f"holds {_counted(len(kept), kind)} in one folder, and nothing tells the labels",
        where=str(path),
        hint=f"one folder per class, or a csv beside them that names each file and its label "
        f"({kept[0].name},label)",
    )


def _counted(count: int, kind: DataKind) -> str:
    """Return how many files there are, in words."""
    return f"1 {kind.removesuffix('s')}" if count == 1 else f"{count:,} {kind}"


def _encoding(kept: Sequence[Path], kind: DataKind) -> Keys:
    """Return the key for texts that are not valid UTF-8."""
    if kind != "texts":
        return {}
    for file in kept:
        try:
            file.read_text("utf-8")
        except UnicodeDecodeError:
            # It takes any bytes, so no text can fail later.
            return {"encoding": "latin-1"}
        except OSError:
            continue
    return {}


def _images_of_a_table(
    path: Path, files: Sequence[Path], tables: Sequence[Path]
) -> FoundData | None:
    """Return images that a table names, or None if no table does."""
    images = [file for file in files if file.suffix.lower() in IMAGE_ENDINGS]
    for table in tables:
        keys, told = keys_of_table(table)
        found = opened("table", {"source": keys}, told)
        for name, column in found.columns.items():
            if not isinstance(column, Listed) or not len(column):
                continue
            first = str(column.values[0])
            below = [image for image in images if f"/{image.as_posix()}".endswith(f"/{first}")]
            if not first or not below:
                continue
            folder = Path(str(below[0]).removesuffix(first))
            if folder.resolve() != table.parent.resolve():
                keys["folder"] = str(folder)
            said = f"images: column {name} of {table.name} names them"
            return opened("table", {"source": keys}, [*told, said])
    if tables and len({file.parent for file in images}) == 1:
        beside = images[0].is_relative_to(tables[0].parent)
        example = str(images[0].relative_to(tables[0].parent)) if beside else images[0].name
        raise DataError(
            f"holds images and {tables[0].name}, which names none of them",
            where=str(path),
            hint=f"a column with the whole names, such as {example}, with endings and without "
            "backslashes",
        )
    return None


def _of_tables(path: Path, files: Sequence[Path], tables: Sequence[Path]) -> FoundData:
    """Return the one table of a folder, or those of its parts."""
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
        if (stem := _stem(file)) in PARTS:
            parts.setdefault(PARTS[stem], []).append(file)
    if "train" in parts and all(_stem(file) in PARTS for file in tables):
        return _tables_of_parts(parts)
    names = {file: _names_of(file) for file in tables}
    if len({tuple(columns) for columns in names.values()}) == 1:
        pattern = tables[0].parent / f"*{tables[0].suffix}"
        hint = f"init {tables[0]} takes one; data.source.path: {pattern} would take all"
        raise DataError(f"holds {len(tables)} tables alike", where=str(path), hint=hint)
    raise DataError(
        f"holds several tables: {named([file.name for file in tables])}",
        where=str(path),
        hint=f"name the one to learn from, such as finetune init {tables[0]}",
    )


def _stem(file: Path) -> str:
    """Return the name of a table in small letters, without endings and number of a shard."""
    return _SHARD.sub("", file.name.partition(".")[0].lower())


def _names_of(file: Path) -> list[str]:
    """Return the columns of a table."""
    return sorted(opened("table", {"source": keys_of_table(file)[0]}).columns)


def _tables_of_parts(parts: Mapping[str, Sequence[Path]]) -> FoundData:
    """Return tables called train, validation and test as parts; those without labels are told."""
    train = set(_names_of(parts["train"][0]))
    told = []
    sources: dict[str, Keys] = {}
    for part in ("train", "validation", "test"):
        if part not in parts:
            continue
        first = parts[part][0]
        keys, said = keys_of_table(first)
        if len(parts[part]) > 1:
            keys["path"] = str(first.parent / f"{_SHARD.sub('', first.stem)}-*{first.suffix}")
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
