"""What networks have in common: the record of a choice, a head in the target's unit, rates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune.data.table import Listed, Numbers
from finetune.errors import DataError
from finetune.starting.chosen_columns import Columns
from finetune.starting.chosen_sizes import TrainingPace
from finetune.starting.found_data import FoundData
from finetune.starting.wishes import Choice, Wishes

Keys = dict[str, Any]
TRAINED = ("head", "top", "all")
"""What `--train` takes."""


@dataclass(frozen=True, slots=True)
class ChosenNetwork:
    """A network with the steps that prepare its inputs, and how it is trained.

    Args:
        layers: Keys of its layers.
        pace: How long it is trained.
        lr: Learning rate.
        choices: What was chosen, for the user.
        transforms: Keys of the steps; None for those of the pretrained network.
        freeze: Value of `freeze`; None if all of it is trained.
        source: Further keys of the source.
        trust: Packages whose code it runs.
        dtypes: Number types that arrays are read as.
    """

    layers: list[Keys]
    pace: TrainingPace
    lr: float
    choices: tuple[Choice, ...]
    transforms: list[Keys] | None = None
    freeze: Any = None
    source: Keys = field(default_factory=dict)
    trust: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)


def head_of(columns: Columns, found: FoundData, **keys: Any) -> list[Keys]:
    """Return the last layers: one output per class or number, in the unit of the target."""
    if columns.task != "regression":
        return [{"name": "head", "type": "Linear", **keys, "out_features": "classes"}]
    # The head then learns numbers around 0 and 1, whatever the unit of the target is.
    scale, shift = unit_of(columns, found)
    count = len(scale)
    # One number needs no list.
    unit = {"scale": scale if count > 1 else scale[0], "shift": shift if count > 1 else shift[0]}
    return [
        {"name": "head", "type": "Linear", **keys, "out_features": count},
        {"name": "unit", "type": "affine", **unit},
    ]


def unit_of(columns: Columns, found: FoundData) -> tuple[list[float], list[float]]:
    """Return standard deviation and mean of each number that is learnt, to four digits."""
    numbers = torch.cat([_numbers(found, name) for name in columns.target], dim=1)
    # A target that is always the same has no spread, and nothing may be multiplied by 0.
    scale = [_rounded(float(value)) or 1.0 for value in numbers.std(dim=0)]
    return scale, [_rounded(float(value)) for value in numbers.mean(dim=0)]


def _rounded(value: float) -> float:
    """Return a number with four digits."""
    return float(f"{value:.4g}")


def _numbers(found: FoundData, name: str) -> torch.Tensor:
    """Return the numbers of a column, `(N, K)`.

    Raises:
        DataError: it holds something else.
    """
    column = found.columns[name]
    try:
        if isinstance(column, Numbers):
            return column.values.double().reshape(len(column), -1)
        assert isinstance(column, Listed)
        rows = [value if isinstance(value, list | tuple) else [value] for value in column.values]
        return torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(
            f"column {name!r} does not hold numbers in every row, and regression learns numbers",
            hint="--task classification learns classes",
        ) from error


def rates_of(columns: Columns, wishes: Wishes) -> tuple[Any, float, Choice]:
    """Return freezing and rate of a pretrained encoder with a new head."""
    train = wishes.train or "head"
    if train == "head":
        why = "the head alone is trained (--train top or all trains more)"
        return ["encoder"], 1e-2, Choice("frozen", "the pretrained network", why)
    # A new head learns from nothing, pretrained weights are only to be moved a little.
    rates = {"head": 1e-3, "encoder.*": 5e-5}
    if train == "all":
        phases = [{"name": "all", "train": [{"all": True}], "lr": rates}]
        return {"phases": phases}, 1e-3, Choice("frozen", "nothing", "as you said")
    # First the head alone: gradients through an untrained one would move what is pretrained at
    # random.
    top = {"name": "top", "train": ["head", {"depth": "-2:"}], "lr": rates}
    first = {"name": "head", "train": ["head"], "until": {"epochs": 1}}
    told = Choice("frozen", "all but the head; its last two blocks only in the first epoch")
    return {"phases": [first, top]}, 1e-3, told
