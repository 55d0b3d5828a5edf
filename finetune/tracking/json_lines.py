"""`metrics.jsonl`: the figures of a run, one line per logged step, readable while it runs."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.errors import FinetuneError
from finetune.reading import parse_json
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

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Drop the lines after `step`, and of that step those after the first `lines` of all.

        All of them go where a run begins anew.
        """
        cut_back(self._path, step or -1, lines)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one line.

        JSON has no infinity and no NaN: such a figure becomes null, and its tag stands in the
        list `non_finite`.
        """
        try:
            if not self._is_ready:
                _make_ready(self._path)
                self._is_ready = True
            with disk.open_to_append(self._path) as file:
                file.write(_line(step, values))
        except OSError as error:
            raise _cannot("write", self._path, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that a kill cut short.

    Raises:
        FinetuneError: the file cannot be read, or a line of it is not a JSON object with a step.
    """
    return [entry for _, entry in _entries(path)]


def has_torn_line(path: Path) -> bool:
    """Tell whether a kill has cut short the last line of a file.

    Raises:
        FinetuneError: the file cannot be read.
    """
    try:
        with disk.open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1))
            return size > 0 and file.read(1) != b"\n"
    except OSError as error:
        raise _cannot("read", path, error) from error


def cut_back(path: Path, step: int, lines: int | None = None) -> None:
    """Drop the lines after `step`, so that a run resumed there writes none twice.

    Of a step that was evaluated after its checkpoint, only the first `lines` lines of the file
    tell which are from before.

    The file is replaced in one move. A file that does not exist is left so.

    Raises:
        FinetuneError: the file cannot be read or written, or a line of it is damaged.
    """
    if disk.kind_of(path) is None:
        return
    kept = [line for line, entry in _entries(path) if entry["step"] <= step][:lines]
    try:
        disk.replace_file(path, b"".join(kept))
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
        with disk.open_to_read(path) as file:
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        raise _cannot("read", path, error) from error
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = parse_json(line, f"{path}:{number}")
        except FinetuneError:
            entry = None
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            raise FinetuneError(
                f"not a line of metrics, got {line.decode(errors='replace').strip()[:60]!r}",
                hint="remove the line, or the file",
                where=f"{path}:{number}",
            )
        yield line, entry


def _make_ready(path: Path) -> None:
    """Make the folder, and remove a last line that an earlier kill cut short."""
    disk.make_folder(path.parent)
    with disk.open_to_append(path) as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _cannot(verb: str, path: Path, error: OSError) -> FinetuneError:
    return FinetuneError(f"cannot {verb}: {error.strerror}", where=str(path))
