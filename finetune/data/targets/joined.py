"""Join several target columns into one: `target: [first, second]`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finetune.config.data import DataConfig
from finetune.config.messages import shown
from finetune.data.cells import read_cells
from finetune.data.readers.chunks import refuse_absent
from finetune.data.table import Column, Listed, Numbers, Table, settle
from finetune.data.targets.labels import LabelRules
from finetune.errors import DataError

_KEY = ("data", "target")
_TRUTHS = {"true": 1.0, "false": 0.0}
"""Words for 1 and 0 in label columns."""


def join_targets(
    config: DataConfig, tables: Mapping[str, Table], head: tuple[str, ...]
) -> tuple[DataConfig, dict[str, Table], LabelRules]:
    """Return config and tables with a single target column, and the rules for its labels.

    Several columns become one column of rows of numbers; its name lists theirs.

    Args:
        config: `data:` of the config.
        tables: The table of each part.
        head: Names of the outputs of the network's pretrained head.

    Raises:
        DataError: one of several target columns is missing, is an input too, or holds something
            that is not a number.
    """
    names = config.target if isinstance(config.target, tuple) else ()
    rules = LabelRules(config.labels.fold, config.labels.order, head, names)
    if not names:
        return config, dict(tables), rules
    # The network would learn to copy its input.
    if fed := set(names) & set(config.inputs or ()):
        raise DataError(f"column {min(fed)!r} is both input and target", key=_KEY)
    whole = ", ".join(names)
    joined = {part: _joined(table, names, whole) for part, table in tables.items()}
    return config.model_copy(update={"target": whole}), joined, rules


def _joined(table: Table, names: Sequence[str], whole: str) -> Table:
    """Return a table with one column of rows `(N, C)` in place of C columns of numbers."""
    for name in names:
        refuse_absent(name, table.columns, _KEY)
    values = [_values(name, table.columns[name], table, names) for name in names]
    others = {name: column for name, column in table.columns.items() if name not in names}
    return replace(table, columns={**others, whole: Numbers(torch.stack(values, dim=1))})


def _values(name: str, column: Column, table: Table, names: Sequence[str]) -> Tensor:
    """Return one of the columns `names` as numbers `(N,)`.

    Raises:
        DataError: it holds a value that is not a number.
    """
    if isinstance(column, Listed):
        if column.kind == "things":
            column = settle(name, column.values, table.told)
        column = read_cells(column, as_text=False)
    if isinstance(column, Listed) and column.kind == "text":
        words = [str(value).strip().lower() for value in column.values]
        row = next((row for row, word in enumerate(words) if word not in _TRUTHS), None)
        if row is None:
            return torch.tensor([_TRUTHS[word] for word in words])
        raise _no_number(name, column[row], table.place(row), names)
    if not isinstance(column, Numbers) or column.values.ndim != 1:
        raise DataError(f"column {name!r} must hold one number a row", key=_KEY)
    # float32, as the losses of these targets are computed.
    values = column.values.float()
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0])
        raise _no_number(name, values[row].item(), table.place(row), names)
    return values


def _no_number(name: str, value: object, place: str, names: Sequence[str]) -> DataError:
    """Return the error for a value that is not a number, in one of several target columns."""
    hint = f"target: {name}, without brackets, takes a column of labels"
    if len(names) > 1:
        hint = (
            "a list of columns holds numbers, or 0 and 1 for each label; words of several columns "
            "are learned by a list of tasks, each with its target"
        )
    return DataError(
        f"column {name!r} holds {shown(value)} in {place} where a number is needed",
        hint=hint if isinstance(value, str) else None,
        key=_KEY,
    )
