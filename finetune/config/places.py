"""Find the files and folders that a config names.

A relative path starts at the folder of the file that contains it, as in `extends`; if nothing is
there, at the current folder. The key `folder` replaces the former: the config that a run saves has
it, so that its paths work from anywhere. A path given by `-o` starts at the current folder.
`package:` paths, absolute ones and `~` are left alone.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.config.base import PLACE, Node
from finetune.config.file_patterns import files_of_pattern
from finetune.config.marks import is_marked, names_of_marked
from finetune.config.secrets import escaped
from finetune.config.written import Written, dotted, replaced_at, scalars
from finetune.errors import Key, Problem


@dataclass(frozen=True, slots=True)
class Place:
    """A relative path in a config, and where it was found.

    Args:
        key: Its position in the config.
        text: The path as written.
        found: The folder that it was found in, or None.
        searched: The folders that were searched, as text for a message.
        note: A line to report to the user, or None.
    """

    key: Key
    text: str
    found: Path | None
    searched: str
    note: str | None = None

    @property
    def name(self) -> str:
        """The key as a text with dots."""
        return dotted(self.key)


def find_places(root: Written, config: type[Node]) -> tuple[Written, tuple[Place, ...]]:
    """Return `root` with its relative paths resolved for the current folder, and these paths."""
    folder = named_folder(root)
    names = names_of_marked(PLACE, Node)
    places: list[Place] = []
    for key, written in scalars(root):
        if not isinstance(written.value, str):
            continue
        text = written.value
        # The name of the key is checked first: to follow the schema for every text takes far
        # longer.
        if key[-1] not in names or not _is_relative(text):
            continue
        if is_marked(PLACE, config, key, root):
            place = _find(key, written, folder)
            places.append(place)
            if place.found is not None and written.file is not None:
                value = str(place.found / text)
                raw = written.raw or escaped(text)
                root = replaced_at(root, key, replace(written, value=value, raw=raw))
    return root, tuple(places)


def empty_places(root: Written, config: type[Node]) -> Iterator[Problem]:
    """Yield a problem for each path that is empty: it would be the current folder."""
    names = names_of_marked(PLACE, Node)
    for key, written in scalars(root):
        if written.value == "" and key[-1] in names and is_marked(PLACE, config, key, root):
            said = repr(written.raw or "")
            hint = None if written.raw is None else "the variable is set, and empty"
            yield Problem(written.origin(key), f"needs a path, got {said}", hint)


def named_folder(root: Written) -> Path | None:
    """Return the folder that the key `folder` names, or None."""
    written = root.entry("folder")
    if written is None or not isinstance(written.value, str):
        return None
    folder = Path(written.value).expanduser()
    return folder if written.file is None else written.file.parent / folder


def code_folder(path: Path, root: Written, *, is_run: bool) -> Path | None:
    """Return the folder in which trusted packages are searched last, or None.

    It is the config's folder or one above it, but never a run's folder: what comes with a run is
    data, not code.

    Args:
        path: File of the config.
        root: The config as written.
        is_run: Whether a run saved it.
    """
    here = Path(os.path.realpath(path.parent))
    folder = Path(os.path.realpath(named_folder(root) or here))
    # The config may move the start of its paths by `folder:`, but must not choose where code comes
    # from.
    if not here.is_relative_to(folder) or (is_run and folder == here):
        return None
    return folder


def keep_places(plain: dict[str, Any], places: Sequence[Place], folder: Path) -> None:
    """Make those paths of `plain` absolute that were not found in `folder`; mutates `plain`.

    They then lead to the same files from anywhere.
    """
    for place in places:
        if place.found is None or os.path.realpath(place.found) == os.path.realpath(folder):
            continue
        here: Any = plain
        for step in place.key[:-1]:
            here = here[step]
        here[place.key[-1]] = f"{escaped(str(place.found.resolve()))}/{place.text}"


def absolute_places(places: Sequence[Place]) -> dict[str, str]:
    """Return the real path of each place that was found, by key."""
    return {
        place.name: os.path.realpath(place.found / place.text)
        for place in places
        if place.found is not None
    }


def _find(key: Key, written: Written, folder: Path | None) -> Place:
    """Search a relative path beside the config, then in the current folder."""
    text, here = written.raw or str(written.value), Path()
    if written.file is None:
        found = here if _exists(Path(str(written.value))) else None
        return Place(key, text, found, f"looked in the current folder {str(Path.cwd())!r}")
    # The file that holds the path, not the first one: each file of an `extends` may lie elsewhere.
    beside = folder or written.file.parent
    folders = [place for place in (beside, here) if _exists(place / str(written.value))]
    searched = f"looked in the current folder {str(Path.cwd())!r}"
    if not _is_same(beside, here):
        searched = f"looked in {str(beside)!r}, where the config is, and in the current folder"
    note = None
    # A path that is found twice is told: people who start from two folders would get different
    # data.
    if len(folders) == 2 and not _is_same(*(place / str(written.value) for place in folders)):
        note = (
            f"{written.origin(key)}: {str(beside / text)!r} is taken, beside the config; there is "
            f"another {text!r} in the current folder"
        )
    return Place(key, text, folders[0] if folders else None, searched, note)


def _is_relative(text: str) -> bool:
    """Tell whether a text is a path that depends on the current folder."""
    return bool(text) and not text.startswith(("package:", "~")) and not Path(text).is_absolute()


def _exists(path: Path) -> bool:
    """Tell whether a path exists, or is a pattern of files; False if it cannot be a path."""
    try:
        return path.exists() or bool(files_of_pattern(path))
    except (OSError, ValueError):  # a name that is too long, or none at all
        return False


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to the same place, links resolved."""
    return os.path.realpath(one) == os.path.realpath(other)
