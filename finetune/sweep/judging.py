"""The figure by which the trials of a sweep are judged, and which way it improves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from finetune.config.metric_keys import (
    ClassificationMetric,
    PairMetric,
    RegressionMetric,
    SegmentationMetric,
    TokenMetric,
)
from finetune.config.run import RunConfig
from finetune.config.sweep_keys import SweepConfig
from finetune.errors import FinetuneError

_LOWER = frozenset({"loss", "mse", "rmse", "mae"})
_LITERALS = (ClassificationMetric, TokenMetric, RegressionMetric, SegmentationMetric)


@dataclass(frozen=True, slots=True)
class SweepFigure:
    """A figure of an evaluation and its direction."""

    metric: str
    """Tag, such as `validation/accuracy`."""
    direction: Literal["maximize", "minimize"]

    @property
    def falls(self) -> bool:
        """Whether lower figures are better."""
        return self.direction == "minimize"


def judged_by(config: RunConfig, sweep: SweepConfig) -> SweepFigure:
    """Return the figure that a sweep is judged by.

    Raises:
        FinetuneError: nothing says which way the figure improves.
    """
    known = dict(_own_metrics(config))
    metric = sweep.metric
    if metric == "auto":
        metric = f"validation/{next((name for name in known if known[name]), 'loss')}"
    direction = sweep.direction or (known | _built_in()).get(metric.partition("/")[2])
    if direction is None:
        raise FinetuneError(
            f"nothing says which way {metric!r} improves",
            key=("sweep", "metric"),
            hint="write direction: maximize or direction: minimize beside it",
        )
    return SweepFigure(metric, direction)


def part_without_samples(config: RunConfig, judged: SweepFigure) -> str | None:
    """Return the part of the data that a figure is about, if a config sets no samples aside for it.

    A column that names the parts (`split.by`) is believed to name this one.
    """
    part = judged.metric.partition("/")[0]
    data = config.data
    if part not in ("validation", "test") or getattr(data, part) is not None:
        return None
    split = data.split
    has_samples = split is not None and (split.by is not None or part in split.shares)
    return None if has_samples else part


def _own_metrics(config: RunConfig) -> Iterator[tuple[str, Literal["maximize", "minimize"] | None]]:
    """Yield the metrics of the task in order, each with its direction where that is known."""
    given = getattr(config.task, "chosen_metrics", None) or getattr(config.task, "metrics", None)
    for one in given or ():
        if isinstance(one, str):
            yield one, _built_in().get(one)
        else:
            better = {"higher": "maximize", "lower": "minimize"}.get(one.better or "")
            yield one.label, "maximize" if better == "maximize" else "minimize" if better else None


def _built_in() -> dict[str, Literal["maximize", "minimize"]]:
    """Return the direction of every figure that is built in, by its name without a part."""
    names = {name for literal in _LITERALS for name in get_args(literal)}
    pairs = {name for literal in get_args(PairMetric) for name in get_args(literal) or (literal,)}
    return {name: "minimize" if name in _LOWER else "maximize" for name in names | pairs | {"loss"}}
