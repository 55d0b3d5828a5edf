"""`MANIFEST.json` of a checkpoint: names its files, and verifies that they are as written.

A checkpoint may come from a stranger or a failing disk. So everything is checked before anything
is loaded, and nothing outside its folder is ever read.
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
UNAVERAGED = "unaveraged.safetensors"
"""Holds the weights as trained, where `weights.safetensors` has averages in their place."""
NAMES_OF_FILES = re.compile(
    "|".join([*map(re.escape, (*FILES, UNAVERAGED, MANIFEST)), r"\.tmp[0-9A-Za-z]{6}"])
)
"""Matches all file names of a checkpoint, also of temporary files that a kill of safetensors'
writer leaves."""
LARGEST_HEADER = MAX_HEADER_BYTES
"""Longest header of a safetensors file, in bytes, that is accepted."""


class FileFacts(NamedTuple):
    """Size and digest of a file, as its manifest says."""

    size_bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is, and the size and digest of each of its files."""

    step: int
    phase: int
    base: str
    """Fingerprint of all tensors of the base, which are not in the checkpoint."""
    moved_buffers: tuple[str, ...]
    """Names of frozen buffers that changed, and so are in the checkpoint."""
    files: Mapping[str, FileFacts]
    version: int = FORMAT_VERSION

    @classmethod
    def of(cls, folder: Path, step: int, phase: int, base: str, moved: frozenset[str]) -> Self:
        """Return the manifest of the files that a folder holds now."""
        names = [*FILES, *([UNAVERAGED] if (folder / UNAVERAGED).exists() else [])]
        files = {name: _facts_of(folder / name) for name in names}
        return cls(step, phase, base, tuple(sorted(moved)), files)

    def to_json(self) -> str:
        """Return the text of `MANIFEST.json`; it ends with a digest of its own contents."""
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
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another release.
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
    """Return what is wrong with a checkpoint, or None if it is as its manifest says.

    All its bytes are read.
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
    """Raise `CheckpointError` unless a manifest has the format version of this release."""
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(f"{MANIFEST} has no format version", where=str(folder))
    # Told apart, as the remedy differs: a newer release of finetune, or a new run.
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
    """Return the manifest that a JSON object holds, after checking digest and types."""
    digest = document.pop("blake2b", None)
    # The first releases wrote manifests without a digest of their own.
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
    """Return a fault if files and names do not match one to one, or a name is a path."""
    for name in manifest.files:
        if name != os.path.basename(name) or name in ("", ".", "..", MANIFEST) or "\0" in name:  # noqa: PTH119
            return f"{MANIFEST} names {named([name])}, which is no plain file name"
    # Only now: a name that leaves the folder is worth telling before one that is missing.
    if missing := [name for name in FILES if name not in manifest.files]:
        return f"{MANIFEST} does not name {missing[0]}"
    extra = sorted(e.name for e in os.scandir(folder) if e.name not in {*manifest.files, MANIFEST})
    if extra:
        return f"holds a file that its manifest does not name: {named(extra[:1])}"
    return None


def _fault_of(path: Path, facts: FileFacts) -> str | None:
    """Return what is wrong with one file, or None; all its bytes are read."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return f"{path.name} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{path.name} is a link or a device, not a file"
    # The size first: a file that was cut short is found without reading it.
    if found.st_size != facts.size_bytes:
        return f"{path.name} has {found.st_size} bytes, needs {facts.size_bytes}"
    if digest_of(path) != facts.blake2b:
        return f"{path.name} does not match its digest"
    # Digests can be forged with the header: its length must be checked before it is parsed.
    if path.suffix == ".safetensors" and (header := _header_bytes(path)) > LARGEST_HEADER:
        return f"{path.name} has a header of {header} bytes, the most is {LARGEST_HEADER}"
    return None


def _header_bytes(path: Path) -> int:
    """Return the header length that a safetensors file claims, in bytes."""
    with open_to_read(path) as file:
        return int.from_bytes(file.read(8), "little")


def _facts_of(path: Path) -> FileFacts:
    """Return size and digest of a file as it is now."""
    return FileFacts(path.stat().st_size, digest_of(path))


def _digest(document: Mapping[str, Any]) -> str:
    """Return a digest of a JSON object that does not depend on layout or order of keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
