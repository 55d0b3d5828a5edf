"""`metrics.jsonl`: the figures of a run, one line per logged step, readable while it runs."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.tracking.tracker import Tracker


class JsonLines(Tracker):
    """Appends to a file of JSON lines: `{"step": 12, "epoch": 0.4, "train/loss": 0.31}`.

    Every line is handed to the system whole and at once, so that a killed run loses none, and the
    file is closed in between. Any call raises `FinetuneError` if it cannot be written.

    Args:
        path: The file. Its folder is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_ready = False
        self._there: frozenset[bytes] = frozenset()

    def begin(self, step: int, total_steps: int) -> None:
        """Drop the lines after `step`; all of them where a run begins anew.

        What a run says after its last step or between two phases, it may have said before it was
        killed: a line of `step` that is there already is not written once more.
        """
        cut_back(self._path, step or -1)
        if self._path.exists():
            lines = _entries(self._path)
            self._there = frozenset(line for line, entry in lines if entry["step"] == step)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one line.

        JSON has no infinity and no NaN: such a figure becomes null, and its tag stands in the
        list `non_finite`.
        """
        line = _line(step, values)
        if line in self._there:
            return
        try:
            if not self._is_ready:
                _make_ready(self._path)
                self._is_ready = True
            with self._path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise _cannot("write", self._path, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that a kill cut short.

    Raises:
        FinetuneError: the file cannot be read, or a line of it is not a JSON object with a step.
    """
    return [entry for _, entry in _entries(path)]


def cut_back(path: Path, step: int) -> None:
    """Drop the lines after `step`, so that a run resumed there writes none twice.

    The file is replaced in one move. A file that does not exist is left so.

    Raises:
        FinetuneError: the file cannot be read or written, or a line of it is damaged.
    """
    if not path.exists():
        return
    kept = [line for line, entry in _entries(path) if entry["step"] <= step]
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise _cannot("write", path, error) from error


def _line(step: int, values: Mapping[str, float | str]) -> bytes:
    entry: dict[str, Any] = {"step": step}
    non_finite = []
    for tag, value in values.items():
        entry[tag] = value if isinstance(value, int | str) else float(value)
        if isinstance(entry[tag], float) and not math.isfinite(entry[tag]):
            non_finite.append(tag)
            entry[tag] = None
    if non_finite:
        entry["non_finite"] = non_finite
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each whole line and what it says."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise _cannot("read", path, error) from error
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise FinetuneError(
                f"not a line of metrics, got {line.decode(errors='replace').strip()[:60]!r}",
                hint="remove the line, or the file",
                where=f"{path}:{number}",
            )
        yield line, entry


def _make_ready(path: Path) -> None:
    """Make the folder, and remove a last line that an earlier kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _cannot(verb: str, path: Path, error: OSError) -> FinetuneError:
    return FinetuneError(f"cannot {verb}: {error.strerror}", where=str(path))
