"""Assign rows to the parts of a run by their hashes, after the data has changed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from finetune.data.identify.identity import MOST_HASHED_ROWS, DataIdentity, Hashes, RowHashes
from finetune.errors import DataError

PARTS = ("train", "validation", "test")
_LEFT_OUT = "left out"


class KnownRows:
    """Assigns rows to the parts of a run: known rows stay where they were.

    A row is known if inputs and target equal those of a row of the run; each row of the run matches
    only one. Other rows are judged by their inputs: what was trained on belongs to training, also
    with another target, or as one more copy. A row that cannot be compared may have been trained
    on, so it belongs there too.

    Args:
        identity: The data of the run.

    Raises:
        DataError: the run has so many rows that it kept no hashes of them.
    """

    def __init__(self, identity: DataIdentity) -> None:
        if identity.is_short:
            raise DataError(
                f"which of {sum(identity.sizes.values()):,} rows were trained on is not known, so "
                "none can keep its part: a run keeps hashes of rows for parts of at most "
                f"{MOST_HASHED_ROWS:,} rows",
                hint="`finetune eval RUN FILE` evaluates a file whole, `finetune train CONFIG "
                "--fresh` trains anew on the data as it is now",
            )
        # Counts, not sets: of five equal rows, four may have been in training and one in test.
        self._left = {
            part: Counter(identity.parts[part].tolist()) for part in PARTS if part in identity.parts
        }
        inputs = {part: hashes.tolist() for part, hashes in identity.inputs.items()}
        self._has_inputs = bool(inputs)
        self._part_of: dict[int, str] = {}
        # training comes last, so it wins for rows that were in several parts
        for part in reversed(PARTS):
            self._part_of |= dict.fromkeys(inputs.get(part, ()), part)
        self._part_of |= dict.fromkeys(identity.former.tolist(), "train")

    def parts_of(self, hashes: RowHashes, prefers: str | None = None) -> list[str | None]:
        """Return the part of each row; None for a new row.

        Args:
            hashes: Hashes of the rows.
            prefers: Part that is tried first for each row.
        """
        order = sorted(self._left, key=lambda part: (part != prefers, PARTS.index(part)))
        return [
            self._part(whole, read, order)
            for whole, read in zip(hashes.rows.tolist(), hashes.read.tolist(), strict=True)
        ]

    def _part(self, whole: int, read: int, order: Sequence[str]) -> str | None:
        """Return the part of one row, by its hashes with and without the target."""
        # 0 marks a row whose contents cannot be compared: it equals no other row.
        part = next((part for part in order if whole and self._left[part][whole] > 0), None)
        if part is not None:
            self._left[part][whole] -= 1
            return part
        # On the safe side: it may have been trained on, and must not be tested on.
        if not read or not self._has_inputs:
            return "train"
        return self._part_of.get(read)


Newcomers = Callable[[Sequence[str | None]], Sequence[str | None]]
"""Takes the part of each row, None for a new one; returns each part, None to leave the row out."""


def keep_parts(
    identity: DataIdentity, hashes: RowHashes, newcomers: Newcomers
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the rows of each part as in the run, and lines on new rows.

    Args:
        identity: The data of the run.
        hashes: Hashes of the rows at hand.
        newcomers: Assigns the new rows.

    Returns:
        Positions of the rows of each part that has any, and a line on new rows if there are some.

    Raises:
        DataError: the run kept no hashes of rows, or none of its training rows is left.
    """
    taken: dict[str, list[int]] = {part: [] for part in PARTS}
    new: Counter[str] = Counter()
    before = KnownRows(identity).parts_of(hashes)
    for row, (known, part) in enumerate(zip(before, newcomers(before), strict=True)):
        new[part or _LEFT_OUT] += known is None
        if part is not None:
            taken[part].append(row)
    if not taken["train"]:
        raise DataError("none of the rows that the run was trained on is left")
    parts = {part: torch.tensor(rows) for part, rows in taken.items() if rows}
    if not (count := new.total()):
        return parts, []
    places = ", ".join(
        f"{new[part]} {part if part == _LEFT_OUT else f'in {part}'}"
        for part in (*PARTS, _LEFT_OUT)
        if new[part]
    )
    return parts, [
        f"rows that the run does not know: {count}, {places}; all others keep their part"
    ]


def drawn_parts(hashes: RowHashes, shares: Mapping[str, float], seed: int) -> Newcomers:
    """Return what draws the part of a new row by a hash of its inputs.

    So more rows never change the part of one: to draw by position would move all rows behind an
    inserted one.

    Args:
        hashes: Hashes of the rows at hand.
        shares: Shares of validation and test.
        seed: Seed of the draw.
    """
    return lambda known: [
        part or _drawn(int(hashes.read[row]), shares, seed) for row, part in enumerate(known)
    ]


def named_parts(parts: Mapping[str, Tensor], count: int) -> Newcomers:
    """Return what gives a new row the part that a column names.

    Args:
        parts: Positions of the samples of each part, as the column names them.
        count: How many samples there are.
    """
    named: list[str | None] = [None] * count
    for part, rows in parts.items():
        for row in rows.tolist():
            named[row] = part
    return lambda known: [part or named[row] for row, part in enumerate(known)]


def parts_of_groups(values: Sequence[str], shares: Mapping[str, float], seed: int) -> Newcomers:
    """Return what gives a new row the part of the known rows of its group.

    A group of which rows were trained on belongs to training, whatever the others are. The part of
    a new group is drawn by a hash of its value.

    Args:
        values: The value of each row that rows of a group share.
        shares: Shares of validation and test.
        seed: Seed of the draw.
    """

    def assigned(known: Sequence[str | None]) -> list[str | None]:
        of_group: dict[str, str] = {}
        for value, part in zip(values, known, strict=True):
            if part is not None and of_group.get(value) != "train":
                of_group[value] = part
        for value in values:
            if value not in of_group:
                digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                of_group[value] = _drawn(int.from_bytes(digest, "little"), shares, seed)
        return [part or of_group[value] for value, part in zip(values, known, strict=True)]

    return assigned


def untrained(newcomers: Newcomers) -> Newcomers:
    """Return what places new rows as `newcomers` does, but leaves out those meant for training."""

    def assigned(known: Sequence[str | None]) -> list[str | None]:
        return [
            None if before is None and part == "train" else part
            for before, part in zip(known, newcomers(known), strict=True)
        ]

    return assigned


def never_trained(identity: DataIdentity, part: str, hashes: RowHashes) -> tuple[Tensor, list[str]]:
    """Return the rows of a part with its own source, without those that the run was trained on.

    A row that was in the part before as well stays in it.

    Args:
        identity: The data of the run.
        part: `validation` or `test`.
        hashes: Hashes of the rows in its source.

    Returns:
        Positions of the rows that stay, and a line on those left out.

    Raises:
        DataError: the run kept no hashes of rows, or no row is left.
    """
    parts = KnownRows(identity).parts_of(hashes, prefers=part)
    left = [row for row, known in enumerate(parts) if known != "train"]
    if len(left) == len(parts):
        return torch.arange(len(parts)), []
    unknown = " or cannot be told apart" if (hashes.read == 0).any() else ""
    count = f"{len(parts) - len(left)} of {len(parts)} rows"
    told = f"{count} of the {part} part were trained on{unknown}"
    if not left:
        raise DataError(f"{told}: none is left to be evaluated")
    return torch.tensor(left), [f"{told}: they are left out"]


def count_trained(identity: DataIdentity, inputs: Hashes) -> int | None:
    """Return how many of some rows the run was trained on; None if that is not known.

    Args:
        identity: The data of the run.
        inputs: Hashes of the rows' inputs, as the network reads them.
    """
    trained = identity.trained
    # Names of files say nothing about those of another folder.
    if trained is None or not inputs.all() or identity.known_by == "names":
        return None
    return int(np.isin(inputs, trained).sum())


def _drawn(inputs: int, shares: Mapping[str, float], seed: int) -> str:
    """Return the part of a new row, drawn by the hash of its inputs."""
    # Hashed once more with the seed: other seeds draw other parts.
    digest = blake2b(f"{seed} {inputs}".encode(), digest_size=8).digest()
    at = int.from_bytes(digest, "little") / 2**64
    for part in ("test", "validation"):
        at -= shares.get(part, 0.0)
        if at < 0:
            return part
    return "train"
