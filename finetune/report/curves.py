"""Curves of a run from the lines of `metrics.jsonl`, thinned to what a screen can show."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from finetune.errors import FinetuneError
from finetune.runs.run_record import as_number
from finetune.tracking.json_lines import read_metrics
from finetune.tracking.tracker import PLACE

MOST_POINTS = 1000
"""Points of a curve on the page: a chart is at most about as many pixels wide."""
_NOT_A_FIGURE = ("step", "non_finite", *PLACE)

Points = list[tuple[int, float]]
"""Step and value, by step."""


class PhaseSpan(NamedTuple):
    """A phase that has begun."""

    number: int
    name: str
    begins: int
    ends: int
    """Step at which it ended, or the last step so far."""

    @property
    def steps(self) -> int:
        """How many optimizer steps it took."""
        return self.ends - self.begins


@dataclass(frozen=True, slots=True)
class Curves:
    """All that was logged of a run."""

    points: Mapping[str, Points]
    """Finite values by tag."""
    non_finite: Mapping[str, list[int]]
    """Steps at which a value was infinite or NaN, by tag."""
    phases: tuple[PhaseSpan, ...]
    fault: str | None = None
    """Why there are none, if the file cannot be read."""

    def of(self, tag: str) -> Points:
        """Return the points of a tag; none if it was never logged."""
        return self.points.get(tag, [])

    def mean_between(self, tag: str, begins: int, ends: int) -> float | None:
        """Return the mean of the values after step `begins` up to `ends`; None without any."""
        values = [value for step, value in self.of(tag) if begins < step <= ends]
        return fmean(values) if values else None


def read_curves(run: Path) -> Curves:
    """Return the curves of a run; none, with the reason, where they cannot be read."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return Curves({}, {}, (), "nothing was logged")
    try:
        return curves_of(read_metrics(path))
    except FinetuneError as error:
        return Curves({}, {}, (), f"{error.where}: {error.message}")


def curves_of(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """Return the curves that the lines of a metrics file hold."""
    points: dict[str, Points] = {}
    non_finite: dict[str, list[int]] = {}
    begun: list[tuple[int, int, str]] = []
    last = 0
    for line in lines:
        step = last = line["step"]
        if type(line.get("freeze/phase")) is int:
            begun.append((step, line["freeze/phase"], str(line.get("phase", ""))))
        for tag, value in line.items():
            number = None if tag in _NOT_A_FIGURE else as_number(value)
            if number is not None and math.isfinite(number):
                points.setdefault(tag, []).append((step, number))
        tags = line.get("non_finite")
        for tag in tags if isinstance(tags, list) else ():
            non_finite.setdefault(str(tag), []).append(step)
    return Curves(points, non_finite, _spans(begun, last))


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: of each stretch its smallest and its largest value, in order.

    So a peak of a single step is still seen, which a mean would hide.
    """
    if len(points) <= most:
        return points
    num_buckets = (most - 2) // 2  # room for the two ends
    edges = [len(points) * place // num_buckets for place in range(num_buckets + 1)]
    kept: Points = []
    for begins, ends in pairwise(edges):
        bucket = points[begins:ends]
        low, high = min(bucket, key=_value), max(bucket, key=_value)
        # In the order of their steps, or the line of the chart would run backwards.
        kept += sorted({low, high})
    # The ends of a curve are what a person reads off it.
    return sorted({points[0], *kept, points[-1]})


def aligned(curves: Sequence[Points]) -> tuple[list[int], list[list[float | None]]]:
    """Return the steps of all curves together, and for each curve its value there or None."""
    steps = sorted({step for points in curves for step, _ in points})
    known = [dict(points) for points in curves]
    return steps, [[values.get(step) for step in steps] for values in known]


def _spans(begun: Sequence[tuple[int, int, str]], last: int) -> tuple[PhaseSpan, ...]:
    """Return the phases that have begun with their steps."""
    ends = [*(step for step, _, _ in begun[1:]), last]
    # Without any phase, as in a file of an earlier release, the last step is no end.
    return tuple(
        PhaseSpan(number, name, step, end)
        for (step, number, name), end in zip(begun, ends, strict=False)
    )


def _value(point: tuple[int, float]) -> float:
    return point[1]
