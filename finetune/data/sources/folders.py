"""Find the samples in a folder of classes, and report the files that are none."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.data.media.decoding import read_header
from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.errors import DataError, Key
from finetune.patterns import LIMIT_S, TimeLimit
from finetune.reading import first_outside

# fmt: off
_OTHER_ENDINGS = frozenset({
    ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".npy", ".npz", ".parquet", ".pdf",
    ".py", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip",
})
# fmt: on
"""Endings of files that are known not to be images, without opening them."""
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""Usual names of folders that hold a part of the data."""
_SHOWN = 5
_NAME_S = 1e-3
"""Most seconds that a regular expression may take for a name, on average."""
FolderKind = Literal["textfolder", "imagefolder", "audiofolder"]
"""Type of a source that is a folder of classes."""


@dataclass(frozen=True, slots=True)
class ClassFiles:
    """The samples in a folder of classes.

    Args:
        labels: The class of each sample.
        files: The file of each sample.
        notes: Lines to report to the user.
    """

    labels: list[str]
    files: list[Path]
    notes: tuple[str, ...]


def files_with_labels(
    path: Path, within: Path, key: Key, kind: FolderKind, expression: str
) -> ClassFiles:
    """Return the files below a folder in sorted order, each with the label that its name tells.

    Args:
        path: The folder.
        within: Folder that no link may leave.
        key: Position of the source in the config.
        kind: Type of the source; of images and recordings other files are skipped, with a note.
        expression: Regular expression that is looked for in each name; its group is the label.

    Raises:
        DataError: it is not found in a name, or a symbolic link leaves `within`.
        SelectorError: it takes too long.
    """
    found = files_below(path)
    files = [file for file in found if _is_sample(file, within, kind)]
    refuse_leaving(files, within, key=(*key, "path"))
    here = (*key, "label", "regex")
    # An expression may take exponential time on a name, so that all names together have a limit.
    limit = TimeLimit(max(LIMIT_S, _NAME_S * len(files)))
    labels = limit.first_groups(expression, [file.name for file in files], key=here)
    without = [file for file, label in zip(files, labels, strict=True) if not label]
    if without:
        raise DataError(
            f"{expression!r} finds no label in {len(without):,} of {len(files):,} names, such as "
            f"{without[0].name!r}",
            hint="it is looked for in the name without its folder, and its group is the label",
            key=here,
        )
    others = sorted(set(found) - set(files))
    known = [label for label in labels if label]
    return ClassFiles(known, files, tuple(passed_over(others, path)))


def files_by_class(path: Path, within: Path, key: Key, kind: FolderKind) -> ClassFiles:
    """Return the files of each subfolder in sorted order, without hidden files and folders.

    Args:
        path: The folder with one subfolder per class.
        within: Folder that no link may leave.
        key: Position of the source in the config.
        kind: Type of the source; of images and recordings other files are skipped, with a note.

    Raises:
        DataError: there are no subfolders, or a symbolic link leaves `within`.
    """
    # Sorted, since the order of a folder's entries differs between file systems.
    here = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in here if entry.is_dir()]
    if not classes:
        raise DataError(
            f"{str(path)!r} has no subfolders",
            hint="a subfolder for each class tells the labels, or label: {regex: ...} finds them "
            "in the names",
            key=(*key, "path"),
        )
    others = [entry for entry in here if entry.is_file()]
    labels: list[str] = []
    files: list[Path] = []
    without: list[str] = []
    for folder in classes:
        found = files_below(folder)
        taken = [f for f in found if _is_sample(f, within, kind)]
        others += sorted(set(found) - set(taken))
        files += taken
        labels += [folder.name] * len(taken)
        if not taken:
            without.append(folder.name)
    # All at once: each folder on the way is then resolved only once.
    refuse_leaving(files, within, key=(*key, "path"))
    names = [folder.name for folder in classes]
    notes = [
        *passed_over(others, path),
        *_without(without, path),
        *_parts(names, path, kind),
    ]
    return ClassFiles(labels, files, tuple(notes))


def _is_sample(file: Path, within: Path, kind: FolderKind) -> bool:
    """Tell whether a file of a folder of classes is a sample."""
    match kind:
        case "imagefolder":
            return is_image_file(file, within)
        case "audiofolder":
            return is_audio_file(file)
    return True


def is_audio_file(file: Path) -> bool:
    """Tell whether a file is a recording, by its ending."""
    return file.suffix.lower() in AUDIO_ENDINGS


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder in order, except hidden files and folders."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    ]


def is_image_file(file: Path, within: Path) -> bool:
    """Tell whether a file is an image: by its ending, or by its content if that is unknown.

    Args:
        file: The file.
        within: Folder; no file outside of it is opened.
    """
    ending = file.suffix.lower()
    if ending in IMAGE_ENDINGS or ending in _OTHER_ENDINGS:
        return ending in IMAGE_ENDINGS
    # A link may lead to any file of the system: it is not opened even to see what it is.
    if first_outside([file], within) is not None:
        return False
    try:
        read_header(file)
    except DataError:
        return False
    return True


def passed_over(files: Sequence[Path], folder: Path) -> list[str]:
    """Return a note on files in a folder that are no samples, counted by ending; or nothing."""
    if not files:
        return []
    counts = Counter(file.suffix.lower() or "without an ending" for file in files).most_common()
    told = [f"{count:,} {ending}" for ending, count in counts[:_SHOWN]]
    more = ", ..." if len(counts) > _SHOWN else ""
    number = "1 file of" if len(files) == 1 else f"{len(files):,} files of"
    return [
        f"{number} {str(folder)!r} passed over: {', '.join(told)}{more}, such as {str(files[0])!r}"
    ]


def refuse_endless(path: Path, key: Key) -> None:
    """Raise unless a path is a regular file: a pipe may block forever, a device may have no end.

    Raises:
        DataError: it is a pipe, a device or a socket.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is a pipe or a device, not a file", key=key)


def refuse_leaving(paths: Sequence[Path], within: Path, *, key: Key = ()) -> None:
    """Raise if a file, links resolved, is outside a folder.

    Raises:
        DataError: one does.
    """
    if (position := first_outside(paths, within)) is not None:
        raise DataError(
            f"{str(paths[position])!r} leaves the folder {str(within)!r}",
            hint="name a folder that holds all files: within: DIR, beside the path of the source",
            key=key,
        )


def _without(names: Sequence[str], path: Path) -> list[str]:
    """Return a note on folders without samples, which do not become classes; or nothing."""
    if not names:
        return []
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    number = "1 folder" if len(names) == 1 else f"{len(names):,} folders"
    return [f"{number} of {str(path)!r} without a sample, no class is made of it: {shown}"]


def _parts(names: Iterable[str], path: Path, kind: FolderKind) -> list[str]:
    """Return a note if all subfolders have names of parts of the data, not of classes."""
    entries = {name: path / name for name in names}
    return notes_on_parts_in(entries, path, kind, "folders", "classes")


def notes_on_parts_in(
    entries: Mapping[str, Path], path: Path, kind: str, what: str, read_as: str
) -> list[str]:
    """Return a note if all entries of a folder have names of parts of the data; or nothing.

    Args:
        entries: Paths of the entries, by name.
        path: The folder.
        kind: Type of the source.
        what: What the entries are, for the note.
        read_as: What they are read as, for the note.
    """
    # A common mistake, by which the network would learn to tell the parts apart.
    parts = {name: PARTS.get(name.lower()) for name in entries}
    if None in parts.values():
        return []
    written = ", ".join(
        f"{part}: {{type: {kind}, path: {entries[name]}}}" for name, part in parts.items()
    )
    shown = ", ".join(map(repr, parts))
    return [
        f"the {what} {shown} of {str(path)!r} are read as {read_as}; if they are parts, write "
        f"data: {{{written}}} in place of source and split"
    ]
