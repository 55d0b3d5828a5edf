"""`metrics.jsonl`: the figures of a run, one JSON line per logged step, readable meanwhile."""

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
    """Appends lines such as `{"step": 12, "epoch": 0.4, "train/loss": 0.31}` to a file.

    Each line is written whole in one call, and the file is closed in between, so a kill loses no
    line. Every method raises `FinetuneError` if the file cannot be written.

    Args:
        path: The file. Its folder is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_ready = False

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Drop lines of steps after `step`, and all lines beyond the first `lines`.

        All lines are dropped if the run starts from step 0.
        """
        # From the start lines of step 0 go as well: what was logged before a step comes again.
        cut_back(self._path, step or -1, lines)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one line.

        JSON has neither infinity nor NaN: such a value becomes null, and its tag is added to the
        list `non_finite` of the line.
        """
        try:
            if not self._is_ready:
                _make_ready(self._path)
                self._is_ready = True
            with disk.open_to_append(self._path) as file:
                # One call: lines of a reader that looks in between are never half.
                file.write(_line(step, values))
        except OSError as error:
            raise _cannot("write", self._path, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file as dicts; a last line cut short by a kill is left out.

    Raises:
        FinetuneError: the file cannot be read, or a line is not a JSON object with a step.
    """
    return [entry for _, entry in _entries(path)]


def has_torn_line(path: Path) -> bool:
    """Tell whether the last line of a file has no line end, because a kill cut it short.

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
    """Drop lines of steps after `step`, so that a run resumed there writes none twice.

    `lines` limits the number kept: an evaluation made after the checkpoint has the same step, and
    will be made again.

    The file is replaced in one move. A missing file stays missing.

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
    """Return one line of the file; values that JSON lacks become null."""
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
    """Yield each complete line of a metrics file with its parsed object."""
    try:
        with disk.open_to_read(path) as file:
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        raise _cannot("read", path, error) from error
    for number, line in enumerate(lines, start=1):
        # The last line of a killed run, or one that is being written right now.
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
        # A file that is open to append stands at its end, where there is nothing to read.
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _cannot(verb: str, path: Path, error: OSError) -> FinetuneError:
    return FinetuneError(f"cannot {verb}: {error.strerror}", where=str(path))
