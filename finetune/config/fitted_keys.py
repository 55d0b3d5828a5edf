"""Transforms that are fitted: what they do to a column is computed from the training samples."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.config.base import PUBLIC, Node
from finetune.config.names import SomeNames

_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_Quantile = Annotated[float, Field(ge=0, le=1)]


class _FittedNode(Node):
    columns: Annotated[SomeNames, PUBLIC]
    """The columns; each is fitted alone."""

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"takes each column once, got {list(self.columns)!r}")
        return self


class StandardizeTransform(_FittedNode):
    """Subtract the mean of the training samples and divide by their standard deviation."""

    type: Literal["standardize"]
    """Discriminator."""


class FillTransform(_FittedNode):
    """Fill empty cells, which are refused in columns without this step."""

    type: Literal["fill"]
    """Discriminator."""
    with_: Literal["mean", "median", "most_frequent"] | _Number = Field(alias="with")
    """What goes into an empty cell: mean, median or most frequent value of the training samples, or a number."""
    flag: bool = False
    """Whether a column of 0 and 1, called `NAME_missing`, tells which cells were empty."""


class CategoriesTransform(_FittedNode):
    """Turn words, or numbers that stand for categories, into vectors or positions."""

    type: Literal["categories"]
    """Discriminator."""
    as_: Literal["one_hot", "index"] = Field(default="one_hot", alias="as")
    """A vector with a 1 for the category, all 0 for an unknown one; or its position from 1, 0 for an unknown one, which an `Embedding` with `num_embeddings: categories` takes."""


class ClipTransform(_FittedNode):
    """Bring numbers beyond two limits to the limits."""

    type: Literal["clip"]
    """Discriminator."""
    low: _Number | None = None
    """The lower limit."""
    high: _Number | None = None
    """The upper limit."""
    quantiles: tuple[_Quantile, _Quantile] | None = None
    """In place of `low` and `high`: limits at these quantiles of the training samples, such as `[0.01, 0.99]`."""

    @model_validator(mode="after")
    def _there_are_limits_in_order(self) -> Self:
        given = self.low is not None or self.high is not None
        # Both ways at once, or none of them.
        if given is (self.quantiles is not None):
            raise ValueError("needs 'low' or 'high' or both, or else 'quantiles'")
        low, high = self.quantiles or (self.low, self.high)
        if low is not None and high is not None and not low < high:
            raise ValueError(f"needs the smaller limit first, got {low:g} and {high:g}")
        return self


FittedTransform = StandardizeTransform | FillTransform | CategoriesTransform | ClipTransform
"""A transform that is fitted on the training samples."""
