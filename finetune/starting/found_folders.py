"""Find out what a folder holds: class folders, a table, tables of parts, images with labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.data.sources.folders import PARTS, files_below
from finetune.data.sources.saved_folders import is_saved
from finetune.data.table import Listed
from finetune.errors import DataError, named
from finetune.starting.found_data import (
    DataKind,
    FoundData,
    Keys,
    found_in_file,
    is_table,
    opened,
    refuse_missing,
    without_key,
)
from finetune.starting.found_tables import tables_of_folder
from finetune.starting.named_files import files_of_tables
from finetune.starting.other_layouts import refuse_boxes, refuse_masks

_TEXT_ENDINGS = frozenset({".txt", ".md", ""})
_OF_KIND: dict[DataKind, str] = {
    "images": "imagefolder",
    "texts": "textfolder",
    "recordings": "audiofolder",
}
_SHARE = 0.5
"""Share of the files of a folder from which on they say what it holds."""
_ABOUT_DATA = frozenset(
    {"readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors"}
)
"""Names, without endings, of files that are about the data and no samples of it."""
_NAMED_LABEL = r"^([\W\d_]*[^\W\d_].*?)[-_ .]?\d+\.\w+$"
"""Finds the label `cat` in `cat_001.jpg` and `cat.1.jpg`, and none in `1001.jpg`."""


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
    # Its JSON lines would be taken for a table.
    if (path / "metrics.jsonl").is_file() and (path / "config.yaml").is_file():
        hint = f"finetune predict {path} new.csv"
        raise DataError("is the folder of a run", where=str(path), hint=hint)
    if is_saved(path):
        return _of_datasets(path)
    files = [file for file in files_below(path) if file.suffix.lower() not in (".yaml", ".yml")]
    # Runs that were trained beside the data lie there, with tables and pictures of their own.
    files = [file for file in files if "runs" not in file.relative_to(path).parts[:1]]
    files = [file for file in files if file.name.partition(".")[0].lower() not in _ABOUT_DATA]
    if not files:
        raise _no_files(path)
    refuse_boxes(path, files)
    tables = [file for file in files if is_table(file) or file.suffix.lower() == ".npz"]
    kind = _kind_of(files)
    labelled = [file for file in tables if file.suffix.lower() != ".npz"]
    if kind is None:
        return tables_of_folder(path, files, tables)
    if kind in ("images", "recordings"):
        found = files_of_tables(path, files, labelled, kind)
        if found is not None:
            return found
    if kind == "images":
        refuse_masks(path, [file for file in files if _kind_of_file(file) == kind])
    return _of_files(path, files, kind)


def _no_files(path: Path) -> DataError:
    """Return the error for a folder without data: empty, or with links to it, or words about it."""
    links = [entry.name for entry in sorted(path.iterdir()) if entry.is_symlink()]
    if links:
        return DataError(
            f"holds links to folders, which are not followed: {named(links)}",
            where=str(path),
            hint="name the folder that they lead to, or copy the files",
        )
    about = [file.name for file in files_below(path)]
    held = f"holds no data beside {named(about)}" if about else "is empty: it holds no files"
    return DataError(held, where=str(path), hint="put your data there")


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
        return _of_class_folders(path, kept, kind)
    return _of_names(path, kept, kind)


def _of_class_folders(path: Path, kept: Sequence[Path], kind: DataKind) -> FoundData:
    """Return samples in one folder per class."""
    aside = [file for file in kept if file.parent == path]
    keys = {"type": _OF_KIND[kind], "path": str(path)} | _encoding(kept, kind)
    told = [f"left out: {_counted(len(aside), kind)} beside the class folders"] if aside else []
    inner = sorted({parts[1] for file in kept if len(parts := file.relative_to(path).parts) > 2})
    if inner:
        told.append(f"folders inside the class folders, {named(inner)}, tell nothing of the label")
    return opened(kind, {"source": keys}, told)


def _of_parts(
    path: Path, parts: dict[str, Path], kept: Sequence[Path], kind: DataKind
) -> FoundData:
    """Return samples in folders of parts; a part whose files have no labels is told."""
    files = {
        part: [file for file in kept if file.is_relative_to(folder)]
        for part, folder in parts.items()
    }
    train = _labelled(parts["train"], files["train"], kind)
    sources, told = {"train": train.first}, [*train.told]
    for part in ("validation", "test"):
        if part not in parts:
            continue
        if (keys := _labelled_alike(train, parts[part], files[part])) is None:
            told.append(
                f"{parts[part].name} is left out: nothing tells the labels of its files; predict "
                "takes them"
            )
        else:
            sources[part] = keys
    if len(sources) == 1:
        return replace(train, sources={"source": train.first}, told=tuple(told))
    said = f"parts: {', '.join(sources)}, as the folders are called"
    return replace(train, sources=sources, told=(said, *told))


def _labelled(folder: Path, files: Sequence[Path], kind: DataKind) -> FoundData:
    """Return the files of the training part: in class folders, or with labels in their names.

    Raises:
        DataError: nothing tells their labels.
    """
    if any(file.parent != folder for file in files):
        keys = {"type": _OF_KIND[kind], "path": str(folder)} | _encoding(files, kind)
        return opened(kind, {"source": keys})
    return _of_names(folder, files, kind)


def _labelled_alike(train: FoundData, folder: Path, files: Sequence[Path]) -> Keys | None:
    """Return the keys that read another part as that of training, or None if it has no labels."""
    keys = {"type": train.first["type"], "path": str(folder)} | _encoding(files, train.kind)
    if "label" not in train.first:
        return keys if any(file.parent != folder for file in files) else None
    keys["label"] = train.first["label"]
    try:
        found = opened(train.kind, {"source": keys})
    except DataError:  # a name without a label
        return None
    return keys if _classes(found) <= _classes(train) else None


def _classes(found: FoundData) -> set[str]:
    """Return the labels of samples."""
    column = found.columns["label"]
    return set(column.values) if isinstance(column, Listed) else set()


def _of_names(path: Path, kept: Sequence[Path], kind: DataKind) -> FoundData:
    """Return samples whose own names tell the label, or refuse them."""
    if len(kept) >= 4:
        keys = {"type": _OF_KIND[kind], "path": str(path), "label": {"regex": _NAMED_LABEL}}
        try:
            found = opened(kind, {"source": keys | _encoding(kept, kind)})
        except DataError:  # a name without a number
            found = None
        classes = set() if found is None else _classes(found)
        # Where most files have a class of their own, the names are no labels.
        if found is not None and 1 < len(classes) <= len(kept) / 2:
            said = f"labels: {named(sorted(classes))}, found in names such as {kept[0].name!r}"
            return replace(found, told=(*found.told, said))
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
