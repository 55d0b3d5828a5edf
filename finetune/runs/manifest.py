"""`MANIFEST.json` of a checkpoint: which files it has, and whether they are as they were written.

A checkpoint may come from a stranger, or from a disk that fails. So everything is judged before
anything is loaded, and nothing outside its folder is ever read.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self

from finetune.disk import digest_of, open_to_read
from finetune.errors import CheckpointError, named
from finetune.reading import MAX_HEADER_BYTES, read_own_json

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "progress.json")
"""What every checkpoint holds beside its manifest."""
NAMES_OF_FILES = re.compile("|".join([*map(re.escape, (*FILES, MANIFEST)), r"\.tmp[0-9A-Za-z]{6}"]))
"""Matches the names of all files of a checkpoint, with those that safetensors writes aside: a kill
leaves such a one."""
LARGEST_HEADER = MAX_HEADER_BYTES
"""Bytes of the header of a safetensors file that is still opened."""


class FileFacts(NamedTuple):
    """What a manifest says of a file."""

    size_bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is, and what its files must be."""

    step: int
    phase: int
    base: str
    """Fingerprint of all tensors that the delta leaves out."""
    moved_buffers: tuple[str, ...]
    """Buffers in the delta."""
    files: Mapping[str, FileFacts]
    version: int = FORMAT_VERSION

    @classmethod
    def of(cls, folder: Path, step: int, phase: int, base: str, moved: frozenset[str]) -> Self:
        """Describe the files that a folder holds now."""
        files = {name: _facts_of(folder / name) for name in FILES}
        return cls(step, phase, base, tuple(sorted(moved)), files)

    def to_json(self) -> str:
        """Return the text of `MANIFEST.json`, with a digest over all that it says."""
        document: dict[str, Any] = {
            "version": self.version,
            "step": self.step,
            "phase": self.phase,
            "base": self.base,
            "moved_buffers": list(self.moved_buffers),
            "files": {name: facts._asdict() for name, facts in self.files.items()},
        }
        document["blake2b"] = _digest(document)
        return json.dumps(document, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or another release wrote it.
    """
    try:
        document = read_own_json(folder / MANIFEST)
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing", where=str(folder)) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read", where=str(folder)) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{MANIFEST} is no object", where=str(folder))
    _refuse_other_versions(document.get("version"), folder)
    try:
        return _as_manifest(document)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged", where=str(folder)) from error


def find_fault(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all is as its manifest says.

    Every byte of it is read.
    """
    if folder.is_symlink():
        return "is a link, not a folder"
    if not folder.is_dir():
        return "is missing"
    try:
        manifest = read_manifest(folder)
        return _fault_of_names(manifest, folder) or next(
            filter(None, (_fault_of(folder / n, facts) for n, facts in manifest.files.items())),
            None,
        )
    except CheckpointError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _refuse_other_versions(version: object, folder: Path) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(f"{MANIFEST} has no format version", where=str(folder))
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"was written by a newer release: format version {version}, "
            f"this one reads {FORMAT_VERSION}",
            where=str(folder),
        )
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"has format version {version}, this release reads {FORMAT_VERSION}", where=str(folder)
        )


def _as_manifest(document: dict[str, Any]) -> Manifest:
    digest = document.pop("blake2b", None)
    # Manifests of the first days have no digest of their own.
    if digest is not None and digest != _digest(document):
        raise ValueError("the manifest is not as it was written")
    if not isinstance(document["files"], dict):
        raise TypeError("files must be an object")
    files = {name: FileFacts(**facts) for name, facts in document.pop("files").items()}
    numbers = [document["step"], document["phase"], *(facts.size_bytes for facts in files.values())]
    moved = document.pop("moved_buffers")
    texts = [document["base"], *moved, *(facts.blake2b for facts in files.values())]
    if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(moved, list):
        raise TypeError("needs whole numbers and a list")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("needs texts")
    return Manifest(files=files, moved_buffers=tuple(moved), **document)


def _fault_of_names(manifest: Manifest, folder: Path) -> str | None:
    """Tell names that reach outside, files that lack a name, and names that lack a file."""
    for name in manifest.files:
        if name != os.path.basename(name) or name in ("", ".", "..", MANIFEST) or "\0" in name:  # noqa: PTH119
            return f"{MANIFEST} names {named([name])}, which is no plain file name"
    if missing := [name for name in FILES if name not in manifest.files]:
        return f"{MANIFEST} does not name {missing[0]}"
    extra = sorted(e.name for e in os.scandir(folder) if e.name not in {*manifest.files, MANIFEST})
    if extra:
        return f"holds a file that its manifest does not name: {named(extra[:1])}"
    return None


def _fault_of(path: Path, facts: FileFacts) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return f"{path.name} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{path.name} is a link or a device, not a file"
    if found.st_size != facts.size_bytes:
        return f"{path.name} has {found.st_size} bytes, needs {facts.size_bytes}"
    if digest_of(path) != facts.blake2b:
        return f"{path.name} does not match its digest"
    if path.suffix == ".safetensors" and (header := _header_bytes(path)) > LARGEST_HEADER:
        return f"{path.name} has a header of {header} bytes, the most is {LARGEST_HEADER}"
    return None


def _header_bytes(path: Path) -> int:
    with open_to_read(path) as file:
        return int.from_bytes(file.read(8), "little")


def _facts_of(path: Path) -> FileFacts:
    return FileFacts(path.stat().st_size, digest_of(path))


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
