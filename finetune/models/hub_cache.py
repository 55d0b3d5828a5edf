"""Find damage in what the hub's cache holds of a network, before a library reads it.

A download leaves `refs/main`, which names a commit; `snapshots/<commit>`, with links by the names
of files; and `blobs`, with the files, each named by the hash of its content. The libraries never
compare that hash, and take a link that leads nowhere for a file that the network does not have.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from finetune.errors import Key, ModelError
from finetune.importing import require
from finetune.reading import read_json_object

_SMALL = frozenset({".json", ".txt", ".model", ".jinja"})
"""Ends of the files of configs and tokenizers."""
_WEIGHTS = ".safetensors"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_AT_ONCE = 2**22


def refuse_damaged_cache(
    name: str, *, label: str, key: Key, weights: bool = False, folder: str | Path | None = None
) -> None:
    """Raise if the hub's cache holds a network, and a file of it is lost or has other content.

    Of a network that is not in the cache nothing is said. A file that is only lost is refused
    offline alone: otherwise the hub is asked for it again.

    Args:
        name: Hub id.
        label: The layer, or what else asks for it, for messages.
        key: Position in the config.
        weights: Whether files of weights are looked at, too, which takes about a second a gigabyte.
        folder: Folder of the cache; that of the hub's library if left out.

    Raises:
        ModelError: it is damaged.
    """
    hub = require("huggingface_hub", extra="text")
    fault = fault_of_cache(name, weights=weights, folder=folder, is_final=hub.is_offline_mode())
    if fault is not None:
        raise damaged(name, fault, label=label, key=key, folder=folder)


def damaged(
    name: str, fault: str, *, label: str, key: Key, folder: str | Path | None = None
) -> ModelError:
    """Return the error for a cache with a fault."""
    return ModelError(
        f"{label}: what the hub's cache holds of {name!r} is damaged: {fault}",
        hint=f"remove the folder {str(_place(name, folder))!r} and download it again",
        key=key,
    )


def fault_of_cache(
    name: str, *, weights: bool, folder: str | Path | None = None, is_final: bool = True
) -> str | None:
    """Return what is wrong with the files of a network in the hub's cache; None if nothing is.

    None, too, if the cache has no folder of that network.

    Args:
        name: Hub id.
        weights: Whether files of weights are looked at, too.
        folder: Folder of the cache; that of the hub's library if left out.
        is_final: Whether nobody can be asked for a lost file, so that it counts.
    """
    try:
        place = _place(name, folder)
    except ValueError:  # a path, say: no hub id, so the cache cannot hold it
        return None
    if not place.is_dir():
        return None
    snapshot = _snapshot(place)
    if isinstance(snapshot, str):
        return snapshot if is_final else None
    ends = _SMALL | {_WEIGHTS} if weights else _SMALL
    for path in sorted(one for one in snapshot.iterdir() if one.suffix in ends):
        where = path.relative_to(place)
        if not path.is_file():
            if is_final:
                return f"{str(where)!r} leads to no file"
        elif path.is_symlink() and not _has_its_hash(path):
            return f"{str(where)!r} has another content than was downloaded: its hash differs"
    return _lost_weights(place, snapshot) if weights and is_final else None


def _place(name: str, folder: str | Path | None) -> Path:
    """Return the folder of a network in the cache."""
    # Modules by their own names: the package loads them only when they are asked for.
    download: Any = require("huggingface_hub.file_download", extra="text")
    constants: Any = require("huggingface_hub.constants", extra="text")
    repository = download.repo_folder_name(repo_id=name, repo_type="model")
    return Path(folder or constants.HF_HUB_CACHE, repository)


def _snapshot(place: Path) -> Path | str:
    """Return the folder with the files of the commit that was downloaded last, or a fault."""
    try:
        commit = (place / "refs" / "main").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "'refs/main' cannot be read, which names the commit that was downloaded"
    # It comes from a file: it must not lead out of the folder.
    if not commit or Path(commit).name != commit:
        return "'refs/main' names no commit"
    try:
        is_there = (place / "snapshots" / commit).is_dir()
    except ValueError:  # a zero byte
        is_there = False
    if not is_there:
        return f"'refs/main' names the commit {commit[:50]!r}, of which there is no snapshot"
    return place / "snapshots" / commit


def _lost_weights(place: Path, snapshot: Path) -> str | None:
    """Return which file of weights a snapshot lacks, or None."""
    # Pickles alone: the library says best why it does not take them.
    if (snapshot / _SINGLE).is_file() or any(snapshot.glob("*.bin")):
        return None
    parts = [_SINGLE]
    if (snapshot / _INDEX).is_file():
        named = read_json_object(snapshot / _INDEX).get("weight_map")
        parts = sorted(map(str, named.values())) if isinstance(named, dict) else []
    lost = next((part for part in parts if not (snapshot / part).is_file()), None)
    if lost is None:
        return None
    broken_off = any((place / "blobs").glob("*.incomplete"))
    why = ": its download broke off" if broken_off else ""
    return f"'{snapshot.relative_to(place) / lost}' is missing{why}"


def _has_its_hash(path: Path) -> bool:
    """Tell whether a file of a snapshot has the content by whose hash it is named.

    True for a file whose name is none of the hub's hashes, as mirrors of the hub write.
    """
    target = path.resolve()
    about = target.stat()
    return _matches(target, about.st_size, about.st_mtime_ns)


@cache
def _matches(path: Path, size: int, changed_ns: int) -> bool:
    """Compare a file with the hash that is its name; once for a file that does not change."""
    match len(path.name):
        case 64:  # large files
            hashes = [hashlib.sha256()]
        case 40:  # small ones, as git names them; some mirrors leave out git's beginning
            hashes = [hashlib.sha1(b"blob %d\0" % size), hashlib.sha1()]
        case _:
            return True
    with path.open("rb") as file:
        while piece := file.read(_AT_ONCE):
            for one in hashes:
                one.update(piece)
    return path.name in {one.hexdigest() for one in hashes}
