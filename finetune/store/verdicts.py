"""What trials of batch shapes have shown, kept beside the rows: a warm run need not try again."""

import json
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.reading import read_at_most

_LARGEST = 4 << 20
"""Bytes; a file above it is none of ours."""
_MOST_NETWORKS = 16
"""Those that were not tried for longest give way."""


class Verdicts:
    """For one network, by the name of a shape: None where it is exact, or what speaks against it.

    Several processes may add to one file; what one of them adds at the same moment as another may
    be lost, and is then tried again.

    Args:
        path: Where they are kept; None keeps them in memory.
        network: Stands for all that trials depend on besides the rows.
    """

    def __init__(self, path: Path | None, network: str) -> None:
        self._path, self._network = path, network
        self._known: dict[str, str | None] = dict(_read(path).get(network, {}) if path else {})

    def __contains__(self, shape: str) -> bool:
        """Tell whether batches of a shape were tried."""
        return shape in self._known

    def __getitem__(self, shape: str) -> str | None:
        """Return what speaks against batches of a shape, None if nothing does."""
        return self._known[shape]

    def add(self, shape: str, fault: str | None, *, is_lasting: bool = True) -> None:
        """Note what a trial has shown. Where the file cannot be written, this process knows.

        Args:
            shape: Name of the shape.
            fault: What speaks against it, None if nothing does.
            is_lasting: Whether the next process would find the same; else it tries again.
        """
        self._known[shape] = fault
        if self._path is None or not is_lasting:
            return
        everything = _read(self._path)
        known = everything.pop(self._network, {}) | {shape: fault}
        everything = dict([*everything.items(), (self._network, known)][-_MOST_NETWORKS:])
        with suppress(OSError):
            disk.replace_file(self._path, _sealed(everything).encode(), tag=str(os.getpid()))

    def forget(self) -> None:
        """Forget what any process has found."""
        self._known = {}
        if self._path is not None:
            with suppress(OSError):
                disk.remove(self._path)


def _sealed(everything: dict[str, dict[str, str | None]]) -> str:
    text = json.dumps(everything)
    return f"{_digest(text)}\n{text}"


def _read(path: Path) -> dict[str, dict[str, str | None]]:
    """Return the verdicts by network and shape; none where the file is not as it was written."""
    try:
        with disk.open_to_read(path) as file:
            digest, _, text = read_at_most(file, _LARGEST).decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, Any] = json.loads(text) if digest == _digest(text) else {}
    return found


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
