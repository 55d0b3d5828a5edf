"""The columns of a source that say where its samples go: into which part, or with which others.

Letters: N samples.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.data.table import DECODED, Column, Numbers, Table
from finetune.errors import DataError, Key

_KEY = ("data", "split")
_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of parts as data sets write them, without regard to case."""
_IS_VALIDATION: Mapping[str, str] = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), "validation"),
    **dict.fromkeys(("false", "0", "0.0", "no"), "train"),
}
"""A column such as `is_valid`."""
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
"""A word in the name of a column, such as `is_train` or `isTrain`."""


def values_of(table: Table, name: str, key: Key) -> list[str]:
    """Return the values of a column as texts, such as one that a split goes by.

    Args:
        table: The samples.
        name: The column.
        key: The config key that names it.

    Raises:
        DataError: a value is missing, or the column holds more than one value a sample.
    """
    column = table.columns[name]
    texts = _texts(column)
    if texts is None:
        raise DataError(f"column {name!r} holds no plain values", key=key)
    empty = next((row for row, text in enumerate(texts) if not text), None)
    if empty is not None:
        raise DataError(f"column {name!r} has no value in {table.place(empty)}", key=key)
    return texts


def parts_by(values: Sequence[str], table: Table, name: str) -> dict[str, Tensor]:
    """Return the positions of each part's samples, as a column names the parts.

    Args:
        values: The column's values `(N,)`.
        table: The samples, for messages.
        name: The column.

    Raises:
        DataError: a value names no part, or no sample is for training.
    """
    names = _IS_VALIDATION if _are_flags(values) else _NAMES
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row, value in enumerate(values):
        part = names.get(value.lower())
        if part is None:
            raise DataError(
                f"column {name!r} holds {shown(value)} in {table.place(row)}, which names no part",
                hint="known are train, validation (valid, val, dev) and test, or a column of true "
                "and false that says what is for validation",
                key=(*_KEY, "by"),
            )
        found[part].append(row)
    if not found["train"]:
        raise DataError(f"column {name!r} leaves no sample to train on", key=(*_KEY, "by"))
    return {part: torch.tensor(rows) for part, rows in found.items() if rows}


def refuse_flags_of_others(values: Sequence[str], name: str) -> None:
    """Raise `DataError` if a column of true and false is called after another part."""
    words = (word.lower().removeprefix("is").removesuffix("set") for word in _WORD.findall(name))
    other = next((word for word in words if _NAMES.get(word) in ("train", "test")), None)
    if other is not None and _are_flags(values):
        raise DataError(
            f"column {name!r} seems to say what is for {other}; in a column of true and false, "
            "true is for validation",
            hint="write train, validation and test in it; or turn it round and call it is_valid",
            key=(*_KEY, "by"),
        )


def joined_groups(groups: Tensor, values: Sequence[str]) -> Tensor:
    """Return a number for each sample `(N,)`, equal where samples share a group or a value.

    Two samples also stay together if others link them: one is a copy of a text, whose author has
    written the other.

    Args:
        groups: Position of the first sample of each sample's group `(N,)`.
        values: A value for each sample.
    """
    parents = list(range(len(values)))

    def root(row: int) -> int:
        while parents[row] != row:
            # each look-up halves the way for the next one
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[str, int] = {}
    for row, (group, value) in enumerate(zip(groups.tolist(), values, strict=True)):
        for other in (group, first.setdefault(value, row)):
            one, two = sorted((root(row), root(other)))
            # The earlier one becomes the root, so that numbers do not depend on the order of links.
            parents[two] = one
    return torch.tensor([root(row) for row in range(len(values))])


def _are_flags(values: Sequence[str]) -> bool:
    """Tell whether all values are true or false: next to `test`, a `1` is more likely a mistake."""
    return all(value.lower() in _IS_VALIDATION for value in values)


def _texts(column: Column) -> list[str] | None:
    """Return values as texts; None if a sample has no plain one."""
    if isinstance(column, DECODED):
        return None
    if isinstance(column, Numbers):
        return (
            [_plain(value) for value in column.values.tolist()] if column.values.ndim == 1 else None
        )
    values = [column[row] for row in range(len(column))]
    if any(isinstance(value, list | tuple | dict | bytes | Tensor) for value in values):
        return None
    return [_plain(value) for value in values]


def _plain(value: object) -> str:
    # NaN is the only value that differs from itself.
    if value is None or value != value:
        return ""
    # A gap anywhere in a column of whole numbers makes all of them floats: 3 is still written `3`.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
