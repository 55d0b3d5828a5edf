"""Rows that are predicted already, kept beside the file to be written until it is whole.

The rows go as JSON lines to a hidden file beside the output, and a journal says how far they reach:
a prediction that was interrupted goes on behind them. Both are for the user alone (mode 600), are
never links, and are removed when the output is written.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.data.incoming.incoming_part import Incoming
from finetune.errors import FinetuneError
from finetune.predict.prediction import Piece, SoFar
from finetune.visible import json_text, visible_json

_VERSION = 3
_COMMIT_S = 1.0
"""Seconds between two entries of the journal, at least: each waits for the disk."""
_json_of = json.JSONEncoder(ensure_ascii=False).encode
_MOST_BYTES = 1 << 24
"""Upper bound on the size of a journal that is read."""


class ChangedInputError(FinetuneError):
    """The input does not begin with the rows that were predicted before the interruption."""


@dataclass(slots=True)
class JournalEntry:
    """How far a prediction is.

    Args:
        fingerprint: Hash of weights, config and options.
        rows: Samples of the input that were predicted or passed over.
        num_bad: Those of them that were passed over.
        count: Rows that were predicted.
        size: Bytes of the file of rows.
        digest: Hash of these bytes.
        read: Hash of the samples.
        names: Name of each of the input's columns beside the predictions.
        unfilled: Bytes at the start of the file whose rows lack a column that appeared later.
        num_odd: Predictions with a number that is not finite.
        first_odd: Name of the first sample with one.
    """

    fingerprint: str
    rows: int = 0
    num_bad: int = 0
    count: int = 0
    size: int = 0
    digest: str = ""
    read: str = ""
    names: dict[str, str] = field(default_factory=dict)
    unfilled: int = 0
    num_odd: int = 0
    first_odd: str = ""
    version: int = _VERSION


class Journal:
    """The rows of one prediction until its output is written. It is a context manager.

    Args:
        out: The file to be written.
        fingerprint: Hash of all that decides what a row of it is, but for the input.
        note: Receives a line for the user.

    Raises:
        FinetuneError: another process writes the same file, or the folder cannot be written.
    """

    def __init__(self, out: Path, fingerprint: str, note: Callable[[str], None]) -> None:
        # Of fixed length: a name of 255 bytes has no room for an ending.
        tag = blake2b(os.fsencode(out.name), digest_size=8).hexdigest()
        self._rows_path = out.with_name(f".finetune-predict-{tag}.rows")
        self._path = out.with_name(f".finetune-predict-{tag}.json")
        self._out, self._note = out, note
        try:
            self._file = os.fdopen(_opened(self._rows_path), "r+b")
        except OSError as error:
            raise self._fault(error) from error
        self.before = self._found(fingerprint)
        """How far an earlier process was; nothing done without one."""
        # Behind the last entry of the journal a killed process may have left part of a row.
        self._file.truncate(self.before.size)
        self._file.seek(self.before.size)
        self._now = self.before
        self._due = time.monotonic() + _COMMIT_S

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            is_changed = kind is not None and issubclass(kind, ChangedInputError)
            # With another input the rows are of no use, and would only refuse the next command too.
            if kind is None or is_changed or not self._now.count:
                self.remove()
            else:
                self._commit()
                self._note(
                    f"{self._now.count:,} predictions are kept: the same command goes on there"
                )
        finally:
            self._file.close()

    def passed(self, parts: Iterator[Incoming]) -> Iterator[Incoming]:
        """Yield the pieces of the input that are not predicted yet.

        Raises:
            ChangedInputError: those before them are not the ones that were predicted.
        """
        rows, read = 0, ""
        for part in parts:
            # Read again in any case: only so is it known that the input still begins with what was
            # predicted.
            read = digest_of_part(part, read)
            is_done = rows < self.before.rows
            rows += len(part.names)
            if not is_done:
                self._now.read = read
                yield part
            elif rows >= self.before.rows and (rows, read) != (self.before.rows, self.before.read):
                raise self._changed()
        if rows < self.before.rows:
            raise self._changed()

    def add(self, piece: Piece, size: int, so_far: SoFar) -> None:
        """Append the rows of a piece of `size` samples, and what is to be known behind them."""
        now = self._now
        if now.names != so_far.names:
            # A column that appears late is filled in when the output is written: rows on the disk
            # stay as they are.
            now.names, now.unfilled = dict(so_far.names), now.size
        rows: Sequence[dict[str, Any]] = piece.rows
        if rows and not self._is_filled(rows[0]):
            rows = [*map(self._filled, rows)]
        text = visible_json("".join(f"{_json_of(row)}\n" for row in rows))
        data = text.encode("utf-8")
        try:
            self._file.write(data)
            self._digest.update(data)
            now.rows, now.size = now.rows + size, now.size + len(data)
            now.count, now.num_bad = now.count + len(rows), now.num_bad + piece.num_bad
            now.num_odd, now.first_odd = so_far.num_odd, so_far.first_odd
            # Not for each piece: a commit waits for the disk.
            if time.monotonic() >= self._due:
                self._commit()
        except OSError as error:
            raise self._fault(error) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield all rows, from the beginning; columns that some rows lack come as None."""
        for line, _ in self._stored():
            yield self._filled(json.loads(line))

    def lines(self) -> Iterator[str]:
        """Yield all rows as lines of JSON, with null for numbers that are not finite."""
        for line, is_filled in self._stored():
            # Mostly the stored line is the one to be written, and need not be parsed for that.
            if is_filled and "NaN" not in line and "Infinity" not in line:
                yield line
            else:
                yield f"{json_text(self._filled(json.loads(line)))}\n"

    def _stored(self) -> Iterator[tuple[str, bool]]:
        """Yield the line of each row, and whether it has all columns."""
        self._file.flush()
        self._file.seek(0)
        place = 0
        for line in self._file:
            yield line.decode("utf-8"), place >= self._now.unfilled
            place += len(line)

    def _is_filled(self, row: dict[str, Any]) -> bool:
        """Tell whether a row has all columns of the input that were met, in their order."""
        wanted = ("input", *self._now.names.values())
        return tuple(islice(row, len(wanted))) == wanted

    def _filled(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with all columns of the input that were met, None where it has none."""
        filled = {name: row.get(name) for name in ("input", *self._now.names.values())}
        return filled | row

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self._now.count

    @property
    def num_predicted(self) -> int:
        """How many samples were predicted, whether their rows are written or not."""
        return self._now.rows - self._now.num_bad

    @property
    def num_bad(self) -> int:
        """How many samples were passed over, also before an interruption."""
        return self._now.num_bad

    def remove(self) -> None:
        """Forget all rows."""
        disk.remove(self._path)
        disk.remove(self._rows_path)

    def _found(self, fingerprint: str) -> JournalEntry:
        """Return the last entry of an earlier process; an empty one if there is none that fits."""
        self._digest = blake2b(digest_size=16)
        try:
            entry = self._read()
        except (OSError, ValueError, TypeError) as error:
            return self._anew(fingerprint, f"cannot be used: {error}")
        if entry is None:
            return JournalEntry(fingerprint)
        if entry.fingerprint != fingerprint:
            return self._anew(fingerprint, "is of another run, version or option")
        left = entry.size
        while left and (part := self._file.read(min(left, 1 << 20))):
            self._digest.update(part)
            left -= len(part)
        if left or self._digest.hexdigest() != entry.digest:
            self._digest = blake2b(digest_size=16)
            return self._anew(fingerprint, "is damaged")
        self._note(
            f"goes on behind {entry.rows:,} rows of an interrupted prediction of {self._out.name}"
        )
        return entry

    def _read(self) -> JournalEntry | None:
        """Return the entry of the journal; None without one."""
        if disk.kind_of(self._path) is None:
            return None
        with disk.open_to_read(self._path) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise ValueError("it belongs to another user")
            found = json.loads(file.read(_MOST_BYTES))
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise ValueError("it is of another version")
        entry = JournalEntry(**found)
        numbers = (
            entry.rows,
            entry.num_bad,
            entry.count,
            entry.size,
            entry.unfilled,
            entry.num_odd,
        )
        # Not `isinstance`: `True` is an integer too.
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("it holds a number that is none")
        return entry

    def _anew(self, fingerprint: str, why: str) -> JournalEntry:
        """Return an empty entry, and tell why an earlier one is not used."""
        self._note(f"begins anew: what an interrupted prediction left {why}")
        disk.remove(self._path)
        return JournalEntry(fingerprint)

    def _commit(self) -> None:
        """Put rows and journal on the disk, in this order."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._now.digest = self._digest.hexdigest()
        disk.replace_file(self._path, json.dumps(asdict(self._now)).encode(), mode=0o600)
        self._due = time.monotonic() + _COMMIT_S

    def _changed(self) -> ChangedInputError:
        return ChangedInputError(
            "the input has changed since the prediction that was interrupted",
            where=str(self._out),
            hint="start the command again: it begins anew",
        )

    def _fault(self, error: OSError) -> FinetuneError:
        reason = disk.reason_of(error)
        if error.errno == errno.EWOULDBLOCK:
            reason = "another process predicts to this file"
        return FinetuneError(f"cannot be written: {reason}", where=str(self._out))


def _opened(path: Path) -> int:
    """Return the descriptor of the file of rows, locked for this process.

    Raises:
        OSError: the name is a link, a pipe, a device or a second name of a file, belongs to another
            user, or another process holds the lock.
    """
    descriptor = disk.descriptor_to_change(path, make=True)
    try:
        # In a folder that all may write, another user could lay rows here that we would hand out as
        # ours.
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, f"{path.name} belongs to another user")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def digest_of_part(part: Incoming, before: str) -> str:
    """Return the hash of a piece of the input, and of all before it.

    Files that it names count with their size and the time of their last change.
    """
    digest = blake2b(before.encode(), digest_size=16)
    known: dict[str, Sequence[Any]] = {"names": part.names, "bad": sorted(part.bad)}
    columns = dict(part.columns) | dict(part.beside)
    for name, cells in (*known.items(), *columns.items()):
        # Zeros part the names from the cells: no other split of the same letters has the same
        # bytes. Names and cells may hold halves of characters, which UTF-8 refuses otherwise.
        digest.update(f"\0{name}\0".encode("utf-8", "surrogatepass"))
        digest.update(_bytes_of(list(cells)))
    return digest.hexdigest()


def _bytes_of(cells: Sequence[Any]) -> bytes:
    """Return bytes that differ if cells do."""
    return json.dumps(cells, default=_identity).encode("utf-8", "surrogatepass")


def _identity(value: Any) -> Any:
    """Return plain values that differ if a value that JSON has not does."""
    if isinstance(value, Path):
        try:
            found = value.stat()
        except OSError:
            return str(value)
        return [str(value), found.st_size, found.st_mtime_ns]
    if hasattr(value, "tobytes"):
        return blake2b(value.tobytes(), digest_size=16).hexdigest()
    return repr(value)
