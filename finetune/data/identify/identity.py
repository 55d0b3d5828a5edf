"""Identify a run's data by hashes of rows and columns, classes and parts.

Letters: N samples.
"""

import base64
import binascii
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cells import read_cells
from finetune.data.hashes.any_order import digest_in_any_order
from finetune.data.hashes.contents import HASH_BYTES, as_hashes
from finetune.data.table import DECODED, Column, Numbers

_VERSION = 1
MOST_HASHED_ROWS = 2_000_000
"""Most rows of a part whose hashes are kept; of more only one hash over all, or the document would
be longer than any JSON document that is read (`reading.MAX_JSON_BYTES`)."""
_ROWS_AT_ONCE = 4096
_SHOWN = 5
_NOBODY_KNOWS = 0
"""Stands for the hash of a row whose contents cannot be compared."""

Hashes = NDArray[np.uint64]
"""Hashes of rows, (N,) uint64."""
KnownBy = Literal["contents", "names"]
"""Whether images and recordings are identified by their contents, or by name and size."""


class RowHashes(NamedTuple):
    """Hashes that identify the samples of a table."""

    inputs: Tensor
    """Hash of each row's raw inputs, (N, 16) uint8; only exact copies share it."""
    rows: Hashes
    """Hash of each row's inputs and target, (N,); 0 if the contents cannot be compared."""
    read: Hashes
    """Hash of each row's inputs as the network reads them, (N,): the same for a number in another
    notation, or in a file of another format. 0 if the contents cannot be compared."""
    columns: Mapping[str, str]
    """Hash of each whole column."""
    known_by: KnownBy = "contents"

    @property
    def as_read(self) -> Tensor:
        """Hash of each row's inputs, (N, 16) uint8; those in another notation or format share it.

        Parts may be files of different formats, in which the cells of one row differ.
        """
        read = torch.from_numpy(np.stack([self.read, self.read], 1).view(np.uint8))
        is_known = torch.from_numpy(self.read != _NOBODY_KNOWS)
        return torch.where(is_known[:, None], read, self.inputs)

    @classmethod
    def empty(cls, count: int) -> "RowHashes":
        """Return zeros for so many rows, without columns."""
        inputs = torch.zeros(count, HASH_BYTES, dtype=torch.uint8)
        return cls(inputs, np.zeros(count, np.uint64), np.zeros(count, np.uint64), {})

    def take(self, rows: Tensor) -> "RowHashes":
        """Return the hashes of the samples at `rows`; those of columns stay for the whole table."""
        some = rows.numpy()
        return self._replace(inputs=self.inputs[rows], rows=self.rows[some], read=self.read[some])


@dataclass(frozen=True, slots=True)
class DataIdentity:
    """The data of a run, as hashes that are kept in the run folder.

    Args:
        columns: Hash of each column in use, over all sources.
        classes: Names of the classes.
        parts: Hashes of the rows of each part, in order; only one over all rows if there are too
            many.
        sizes: Number of rows of each part.
        inputs: Hashes of the inputs of each part as the network reads them, in order; empty if
            there are too many, or an older version kept none.
        former: Such hashes of rows that were trained on and are no longer in the data.
        is_kept: Whether the data changed since the run began, and known rows kept their part.
        known_by: What identifies image files.
        unread: Positions of the samples of each part that the run could not make: what was trained
            does not depend on them.
        digest: Hash of the training samples when the run began, if some of them were mended since;
            None to take that of the samples here.
        by_target: Names of the classes of each target of a list of tasks.
        validated: The same as `digest` for the validation samples.
    """

    columns: Mapping[str, str]
    classes: tuple[str, ...] | None
    parts: Mapping[str, Hashes]
    sizes: Mapping[str, int]
    inputs: Mapping[str, Hashes] = field(default_factory=dict)
    former: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    is_kept: bool = False
    known_by: KnownBy = "contents"
    unread: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    digest: str | None = None
    by_target: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    validated: str | None = None

    @classmethod
    def of(
        cls,
        parts: Mapping[str, RowHashes],
        classes: tuple[str, ...] | None,
        by_target: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> Self:
        """Return the identity of data in parts."""
        columns = {
            # Parts of one source share the hash of the whole column, which must count once
            name: _hash(
                dict.fromkeys(
                    part.columns[name].encode() for part in parts.values() if name in part.columns
                )
            ).hex()
            for name in next(iter(parts.values())).columns
        }
        rows = {name: _shortened(part.rows) for name, part in parts.items()}
        sizes = {name: len(part.rows) for name, part in parts.items()}
        is_short = any(len(rows[name]) != size for name, size in sizes.items())
        # One hash over all rows of a part cannot tell which row was trained on.
        inputs = {} if is_short else {name: part.read for name, part in parts.items()}
        # One part may have its files in a table, another one in a folder.
        has_names = any(part.known_by == "names" for part in parts.values())
        known_by: KnownBy = "names" if has_names else "contents"
        return cls(columns, classes, rows, sizes, inputs, known_by=known_by, by_target=by_target)

    def after(self, before: "DataIdentity") -> "DataIdentity":
        """Return this identity for a run that was trained on other data before.

        Args:
            before: Identity of the data until now; its trained rows are remembered.
        """
        trained, here = before.trained, self.inputs.get("train")
        former = before.former if trained is None or here is None else np.setdiff1d(trained, here)
        return replace(self, former=former, is_kept=True)

    @property
    def trained(self) -> Hashes | None:
        """Hashes of the inputs of all rows ever trained on; None if that is not known."""
        here = self.inputs.get("train")
        return None if here is None else np.concatenate([here, self.former])

    @property
    def num_unknown(self) -> int:
        """Number of rows whose contents cannot be compared."""
        return sum(int((rows == _NOBODY_KNOWS).sum()) for rows in self.parts.values())

    @property
    def training_digest(self) -> str:
        """Hash of the training samples in their order."""
        return self.digest or _hash([self.parts["train"].tobytes()]).hex()

    @property
    def validation_digest(self) -> str:
        """Hash of the validation samples, of all but millions in any order; empty without any."""
        rows = self.parts.get("validation")
        if self.validated or rows is None:
            return self.validated or ""
        raw = rows.tobytes()
        return digest_in_any_order(raw, self.sizes["validation"]) or _hash([raw]).hex()

    @property
    def is_short(self) -> bool:
        """Whether there are so many rows that only one hash of all is kept."""
        return any(len(rows) != self.sizes[name] for name, rows in self.parts.items())

    def as_document(self) -> dict[str, Any]:
        """Return the identity as plain data for JSON."""
        parts = {
            name: {"size": self.sizes[name], "rows": _as_text(rows)}
            | ({"inputs": _as_text(self.inputs[name])} if name in self.inputs else {})
            for name, rows in self.parts.items()
        }
        document: dict[str, Any] = {
            "version": _VERSION,
            "columns": dict(self.columns),
            "parts": parts,
        }
        if self.is_kept:
            document |= {"former": _as_text(self.former), "kept": True}
        if self.known_by != "contents":
            document["images"] = self.known_by
        if self.unread:
            document["unread"] = {part: list(rows) for part, rows in self.unread.items()}
        if self.digest is not None:
            document["digest"] = self.digest
        if self.validated:
            document["validated"] = self.validated
        return document

    @classmethod
    def read(cls, document: Any, classes: Any, by_target: Any = None) -> Self:
        """Return the identity that `as_document` wrote.

        Args:
            document: What it wrote.
            classes: Names of the classes, if any.
            by_target: Names of the classes of each target of a list of tasks, if any.

        Raises:
            ValueError: the document is something else.
        """
        try:
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']!r}")
            parts = document["parts"]
            sizes = {str(name): part["size"] for name, part in parts.items()}
            # From a run folder, which may be damaged or a stranger's: nothing is taken on trust.
            if not sizes or not all(type(size) is int and size >= 0 for size in sizes.values()):
                raise ValueError(f"sizes {sizes}")
            inputs = {
                n: _from_text(part["inputs"]) for n, part in parts.items() if "inputs" in part
            }
            if any(len(hashes) != sizes[name] for name, hashes in inputs.items()):
                raise ValueError("hashes of inputs for another number of rows")
            return cls(
                {str(name): str(value) for name, value in document["columns"].items()},
                None if classes is None else tuple(map(str, classes)),
                {str(name): _from_text(part["rows"]) for name, part in parts.items()},
                sizes,
                inputs,
                _from_text(document.get("former", "")),
                document.get("kept") is True,
                "names" if document.get("images") == "names" else "contents",
                _unread(document.get("unread", {}), sizes),
                _digest(document.get("digest")),
                {str(name): tuple(map(str, some)) for name, some in (by_target or {}).items()},
                _digest(document.get("validated")),
            )
        except (KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _unread(document: Any, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the positions that a document names, by part.

    Raises:
        ValueError: they are none of the part.
    """
    found = {str(part): tuple(rows) for part, rows in document.items()}
    for part, rows in found.items():
        if not all(type(row) is int and 0 <= row < sizes[part] for row in rows):
            raise ValueError(f"positions of samples {rows[:_SHOWN]}")
    return found


def _digest(document: Any) -> str | None:
    """Return the hash of a part's samples that a document names, or None."""
    if document is None or (isinstance(document, str) and len(document) == 2 * HASH_BYTES):
        return document
    raise ValueError("a hash of samples of another length")


def hash_rows(
    columns: Mapping[str, Column],
    inputs: Sequence[str],
    read: Mapping[str, Column] | None = None,
) -> RowHashes:
    """Return hashes of the raw cells of every row.

    Args:
        columns: The columns in use.
        inputs: Names of the input columns.
        read: The inputs as numbers or texts; None to read cells as what they look like.
    """
    read = read or {name: read_cells(columns[name], as_text=False) for name in inputs}
    found = RowHashes.empty(len(next(iter(columns.values()))))
    whole = {name: blake2b(digest_size=HASH_BYTES) for name in columns}
    for some, digests in _portions(columns):
        of_inputs = _joined([digests[name] for name in inputs])
        # Random: a row that cannot be compared must not be taken for a copy of another
        found.inputs[some] = as_hashes([d or os.urandom(HASH_BYTES) for d in of_inputs])
        of_rows = _joined([*digests.values()])
        found.rows[some] = np.frombuffer(b"".join(d[:8] if d else bytes(8) for d in of_rows), "u8")
        found.read[some] = _hash_read(read, some, digests)
        for name, column in digests.items():
            whole[name].update(b"".join(d or b"?" for d in column))
    has_names = any(map(_goes_by_names, columns.values()))
    known_by: KnownBy = "names" if has_names else "contents"
    return found._replace(
        columns={name: digest.hexdigest() for name, digest in whole.items()}, known_by=known_by
    )


def _goes_by_names(column: Column) -> bool:
    """Tell whether name and size identify the files of a column, not their contents."""
    known = column.contents if isinstance(column, DECODED) else None
    return known is not None and known.names is not None


def _portions(
    columns: Mapping[str, Column],
) -> Iterator[tuple[slice, dict[str, list[bytes | None]]]]:
    """Yield some rows after the others, with the digests of their cells by column."""
    count = len(next(iter(columns.values())))
    digests = {name: iter(column.digests()) for name, column in columns.items()}
    # In portions: an object for each cell of a large table takes more memory than its texts.
    for start in range(0, count, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, count)
        some = {name: list(islice(column, stop - start)) for name, column in digests.items()}
        yield slice(start, stop), some


def _hash_read(
    columns: Mapping[str, Column], rows: slice, digests: Mapping[str, Sequence[bytes | None]]
) -> Hashes:
    """Return a hash of some rows' inputs as the network reads them.

    Args:
        columns: The inputs, with cells of tables read as numbers or texts.
        rows: The rows.
        digests: Digests of these rows by column; reading numbers from cells is all that changes
            them.
    """
    # As doubles: 1 in one file and 1.0 in another are the same to the network.
    numbers = [c.values[rows].double() for c in columns.values() if _is_plain_numbers(c)]
    others = [digests[name] for name, column in columns.items() if not _is_plain_numbers(column)]
    block = torch.stack(numbers, dim=1).numpy() if numbers else None
    found = np.zeros(rows.stop - rows.start, np.uint64)
    for row in range(len(found)):
        cells = [column[row] for column in others]
        if None not in cells:
            told = b"" if block is None else block[row].tobytes()
            # 64 bits: two of a million different rows share one with a chance of 3 in 10^8.
            found[row] = int.from_bytes(_hash([told, *filter(None, cells)])[:8], "little")
    return found


def _is_plain_numbers(column: Column) -> TypeGuard[Numbers]:
    """Tell whether a column is one number per row, of whatever type."""
    return isinstance(column, Numbers) and column.values.ndim == 1


def _shortened(rows: Hashes) -> Hashes:
    """Return the hashes of rows, or a single one over all if there are too many."""
    return (
        rows
        if len(rows) <= MOST_HASHED_ROWS
        else np.frombuffer(_hash([rows.tobytes()])[:8], np.uint64)
    )


def _joined(columns: Sequence[Sequence[bytes | None]]) -> list[bytes | None]:
    """Return one hash per row over several columns; None if a cell cannot be compared."""
    if len(columns) == 1:
        return list(columns[0])
    return [None if None in row else _hash(filter(None, row)) for row in zip(*columns, strict=True)]


def _hash(parts: Iterable[bytes]) -> bytes:
    """Return a hash over bytes."""
    return blake2b(b"".join(parts), digest_size=HASH_BYTES).digest()


def _as_text(rows: Hashes) -> str:
    """Return hashes as base64 text, the same on machines of any byte order."""
    # As numbers in JSON the hashes would take twice the space.
    return base64.b64encode(rows.astype("<u8").tobytes()).decode("ascii")


def _from_text(text: str) -> Hashes:
    """Return the hashes in a base64 text."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<u8")
