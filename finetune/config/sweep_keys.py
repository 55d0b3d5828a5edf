"""`sweep:` which keys `finetune sweep` varies, over which values, and by which figure it judges."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import Count

_Number = (
    Annotated[int, Field(ge=-(10**15), le=10**15)] | Annotated[float, Field(ge=-1e30, le=1e30)]
)
_MOST_KEYS = 100
"""Most keys that a sweep varies."""
_MOST_CHOICES = 1000
"""Most values that are listed for a key."""


class SearchRange(Node):
    """A range of numbers, both ends included: whole ones if all that is given is whole."""

    low: _Number
    """The smallest value."""
    high: _Number
    """The largest value."""
    log: bool = False
    """Whether values are spread evenly over their logarithm, as suits learning rates."""
    step: _Number | None = None
    """Distance between two values; any value in between is possible if left out, of whole numbers each."""

    @model_validator(mode="after")
    def _it_holds_numbers(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 where log is true")
        if self.log and self.step is not None:
            raise ValueError("takes 'log' or 'step', not both")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step ({self.step}) must be above 0")
        if self.step is not None and not self._ends_on_a_step(self.step):
            raise ValueError(f"{self.high} is not a whole number of steps of {self.step} from low")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def _ends_on_a_step(self, step: float) -> bool:
        """Tell whether a whole number of steps leads from the smallest to the largest value."""
        count = round((self.high - self.low) / step)
        # Not to the last bit: in binary, 0.3 is not quite three steps of 0.1.
        return abs(self.low + count * step - self.high) <= 1e-9 * max(1.0, abs(self.high))


def _is_a_range(value: Any) -> str | None:
    """Return the tag of a value below `search`."""
    if isinstance(value, Mapping | SearchRange):
        return "range"
    return "choices" if isinstance(value, list | tuple) else None


SearchValues = Annotated[
    Annotated[SearchRange, Tag("range")]
    | Annotated[tuple[Any, ...], Field(min_length=1, max_length=_MOST_CHOICES), Tag("choices")],
    Discriminator(
        _is_a_range,
        custom_error_type="values",
        custom_error_message="needs a range {low: ..., high: ...} or a list of values",
    ),
]
"""What a key may be: a range of numbers, or one of a list of values of any kind."""


class SweepConfig(Node):
    """What `finetune sweep` tries. Other verbs leave this section alone, and say so."""

    search: dict[str, SearchValues] = Field(min_length=1, max_length=_MOST_KEYS)
    """For each key of the config, with dots as for `-o` (`optimizer.lr`, `freeze`), its values: `{low: 1e-4, high: 1e-1, log: true}`, `{low: 1, high: 9, step: 2}`, or a list of values of any kind, such as selectors for `freeze`."""
    metric: Annotated[str, PUBLIC] = "auto"
    """Tag of the figure by which trials are judged, of the weights that a run uses at its end, such as `validation/accuracy`. `auto` is the first metric of the task whose direction is known, else `validation/loss`."""
    direction: Literal["maximize", "minimize"] | None = None
    """Which way the figure improves; needed only for metrics that are not built in and do not say `better`."""
    trials: Count | None = None
    """Number of trials; `--trials` overrides it. 20 if left out, and the whole grid with `sampler: grid`."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How values are chosen: `tpe` learns from earlier trials, after ten at random; `random` draws; `grid` tries every combination in order. No combination is tried twice."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Whether trials that do badly end early, judged at each evaluation: `median` ends a trial whose best figure so far is worse than the median of the others at the same evaluation, after five whole trials; `hyperband` shares out evaluations by successive halving; `none` lets all end."""

    @model_validator(mode="after")
    def _a_grid_is_finite(self) -> Self:
        for key, values in self.search.items():
            endless = isinstance(values, SearchRange) and not values.is_whole and not values.step
            if self.sampler == "grid" and (
                endless or (isinstance(values, SearchRange) and values.log)
            ):
                raise ValueError(f"a grid needs a list of values or a 'step' for {key!r}")
        return self
