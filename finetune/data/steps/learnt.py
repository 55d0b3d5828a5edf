"""What fitted steps keep of the training samples, and how a run's `data.json` holds it.

The figures are few and plain, so that no object of a library has to be stored: the classes of
scikit-learn could only be kept pickled, and pickles are never read here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CATEGORIES = 200_000
"""Most categories of one column: their names are a part of the run's `data.json`."""
_MOST_READ = 10**6
"""Most categories that are read: runs of earlier versions may have more than are fitted now."""
_MOST_NUMBERS = 10**7


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of each number of a sample; a constant has deviation 0."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """What goes into an empty cell: a word, or one number for each number of a sample."""

    value: str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Smallest and largest value of each number of a sample; None for no limit."""

    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Known:
    """The categories in their order: the first one has position 1."""

    names: tuple[str, ...]


Figures = Scale | Filling | Limits | Known
"""What is kept of one column."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one fitted step has kept of the training samples, by column.

    Args:
        type: Type of the transform.
        columns: The figures of each column.
        makes_positions: Whether categories become positions, which an embedding takes.
    """

    type: str
    columns: Mapping[str, Figures]
    makes_positions: bool = False


def read_learnt(document: object) -> tuple[Learnt, ...]:
    """Return what a run has kept, from its `data.json`.

    Raises:
        ValueError: the document is not what a run writes.
    """
    if not isinstance(document, list):
        raise ValueError("the fitted steps are no list")
    return tuple(_step(entry) for entry in document)


def num_positions(learnt: Sequence[Learnt]) -> dict[str, int]:
    """Return how many rows an embedding needs for each column of positions: one for unknown."""
    return {
        name: len(figures.names) + 1
        for one in learnt
        for name, figures in one.columns.items()
        if one.makes_positions and isinstance(figures, Known)
    }


def _step(entry: Any) -> Learnt:
    """Return one step; raise ValueError if the entry is none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("columns"), dict):
        raise ValueError("a fitted step has no columns")
    # A forged file may hold anything here, so nothing is used before it has its type.
    kind, makes_positions = str(entry.get("type")), entry.get("makes_positions")
    if not isinstance(makes_positions, bool) or kind not in _READERS:
        raise ValueError("a fitted step of no known type")
    columns = {str(name): _figures(kind, value) for name, value in entry["columns"].items()}
    return Learnt(kind, columns, makes_positions)


def _figures(kind: str, value: Any) -> Figures:
    """Return the figures of one column; raise ValueError if they do not fit the type."""
    if not isinstance(value, dict):
        raise ValueError(f"figures of {kind} are no mapping")
    try:
        return _READERS[kind](value)
    except KeyError as error:
        raise ValueError(f"figures of {kind} lack {error}") from error


def _scale(value: Mapping[str, Any]) -> Scale:
    mean, deviation = _numbers(value["mean"]), _numbers(value["deviation"])
    if len(mean) != len(deviation) or min(deviation) < 0:
        raise ValueError("a mean without a standard deviation")
    return Scale(mean, deviation)


def _filling(value: Mapping[str, Any]) -> Filling:
    word = value["value"]
    return Filling(word if isinstance(word, str) else _numbers(word))


def _limits(value: Mapping[str, Any]) -> Limits:
    low, high = (None if value[end] is None else _numbers(value[end]) for end in ("low", "high"))
    return Limits(low, high)


def _known(value: Mapping[str, Any]) -> Known:
    names = value["names"]
    is_list = isinstance(names, list) and 0 < len(names) <= _MOST_READ
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ValueError("categories are no list of words")
    # Of two positions of one name the first would never be used: no run writes that.
    if len(set(names)) < len(names):
        raise ValueError("a category is there twice")
    return Known(tuple(names))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Figures]] = {
    "standardize": _scale,
    "fill": _filling,
    "clip": _limits,
    "categories": _known,
}


def _numbers(value: Any) -> tuple[float, ...]:
    """Return finite numbers; raise ValueError for anything else."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_NUMBERS:
        raise ValueError("figures are no list of numbers")
    # `type`: true of JSON counts as a number for `isinstance`.
    if not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        raise ValueError("a figure is no finite number")
    return tuple(map(float, value))
