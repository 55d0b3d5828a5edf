"""Results of trials of batch shapes, kept beside the rows: a warm run does not repeat them."""

import json
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.reading import read_at_most

_LARGEST = 4 << 20
"""Upper bound on the size of the file. A larger one is ignored: no process of ours wrote it."""
_MOST_NETWORKS = 16
"""Upper bound on the networks in a file; those tried longest ago are dropped."""


class Verdicts:
    """For one network and each shape: None if its batches are exact, else the reason why not.

    Several processes may add to one file. If two add at the same moment, one result may be lost;
    it is then tried again.

    Args:
        path: Their file; None keeps them in memory.
        network: Key of all that trials depend on besides the rows.
    """

    def __init__(self, path: Path | None, network: str) -> None:
        self._path, self._network = path, network
        self._known: dict[str, str | None] = dict(_read(path).get(network, {}) if path else {})

    def __contains__(self, shape: str) -> bool:
        """Tell whether a shape was tried."""
        return shape in self._known

    def __getitem__(self, shape: str) -> str | None:
        """Return why batches of a shape are not exact; None if they are."""
        return self._known[shape]

    def add(self, shape: str, fault: str | None, *, is_lasting: bool = True) -> None:
        """Add the result of a trial. If the file cannot be written, only this process keeps it.

        Args:
            shape: Name of the shape.
            fault: Why its batches are not exact; None if they are.
            is_lasting: Whether another process would find the same; else it is not saved.
        """
        self._known[shape] = fault
        if self._path is None or not is_lasting:
            return
        # Read again, since other processes add to the same file.
        everything = _read(self._path)
        known = everything.pop(self._network, {}) | {shape: fault}
        everything = dict([*everything.items(), (self._network, known)][-_MOST_NETWORKS:])
        text = json.dumps(everything)
        # Without a digest a flipped bit could turn a reason into "exact".
        content = f"{_digest(text)}\n{text}".encode()
        # A trial that is not saved is made again: no reason to end a run.
        with suppress(OSError):
            disk.replace_file(self._path, content, tag=str(os.getpid()))

    def forget(self) -> None:
        """Remove the results of all processes."""
        self._known = {}
        if self._path is not None:
            with suppress(OSError):
                disk.remove(self._path)


def _read(path: Path) -> dict[str, dict[str, str | None]]:
    """Return the results by network and shape; none if the file is damaged."""
    try:
        with disk.open_to_read(path) as file:
            digest, _, text = read_at_most(file, _LARGEST).decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, Any] = json.loads(text) if digest == _digest(text) else {}
    return found


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
