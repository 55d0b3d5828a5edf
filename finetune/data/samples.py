"""Samples and columns as steps pass them on: dicts by name, in which steps replace entries."""

from collections.abc import Collection, Mapping
from typing import Any

from finetune.data.lazy_tokens import LazyColumn
from finetune.data.ragged import Ragged
from finetune.data.table import Column
from finetune.errors import DataError, named

Prepared = Column | Ragged | LazyColumn
"""What transforms turn columns into."""
Sample = dict[str, Any]
Columns = dict[str, Prepared]


def replaced(
    old: Mapping[str, Any], names: Collection[str], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `old` with `new` in place of the first of `names`, and without the other `names`.

    Raises:
        DataError: another column of `old` has a name in `new`.
    """
    # To lose a column because of an equal name would pass unseen until a network misses it.
    kept = old.keys() - set(names)
    if taken := next((name for name in new if name in kept), None):
        raise DataError(
            f"the transform of {named(names)} gives a column {taken!r}, and there is one of that "
            "name already"
        )
    result: dict[str, Any] = {}
    for name, value in old.items():
        if name not in names:
            result[name] = value
        elif not new.keys() <= result.keys():
            result.update(new)
    return result
