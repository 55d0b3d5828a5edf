"""Shapes of batches, and what fills up samples that are shorter than others.

Letters: B samples of a batch, L tokens that it is filled up to.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from finetune.data.loader import MASK, Batch, Extent


class Split(Protocol):
    """What is asked of the samples of a split; `data.loader.Samples` is one."""

    views: int | None
    """How many views of a sample there are."""

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample, where batches are filled up."""

    @property
    def has_shorter(self) -> bool:
        """Whether some samples end before the end of a batch that is as long as they get."""

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how long a batch of the samples at `indices` is; None where that is not known."""

    def fetch(
        self,
        indices: Tensor,
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return a batch of the samples at `indices`."""


class Shape(NamedTuple):
    """What tells a batch from others besides values: kernels are chosen by it."""

    size: int
    """Samples of the batch."""
    length: int | None = None
    """L, where there are tokens."""
    is_padded: bool = False
    """Whether any sample ends before: where none does, networks leave their mask out."""
    longest: int | None = None
    """Tokens of the longest sample, where all end before: networks may cut off the rest."""

    @classmethod
    def of(cls, samples: Split, indices: Tensor, length: int | None = None) -> "Shape":
        """Return the shape of a batch of the samples at `indices`, filled up to `length` if given.

        Without that, as far as is needed for the longest of them.
        """
        extent = samples.extent(indices.cpu())
        if extent is None:
            return cls(len(indices))
        width = length or extent.width
        longest = extent.longest if extent.longest < extent.width else None
        return cls(len(indices), width, extent.shortest < width, longest)

    def __str__(self) -> str:
        """Return the shape in words."""
        if self.length is None:
            return f"{self.size} samples"
        if self.longest is not None:
            each = f"each of at most {self.longest}"
            return f"{self.size} samples padded to {self.length} tokens, {each}"
        return f"{self.size} samples {'padded to' if self.is_padded else 'of'} {self.length} tokens"


def mask_of(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return what tells tokens from padding, `(B, L)`, if there is such a column."""
    mask = inputs.get(MASK)
    return mask if mask is not None and mask.ndim == 2 else None


def shortened(batch: Batch, place: int) -> Batch:
    """Return a batch in which the sample at `place` has lost its last token to padding."""
    mask = mask_of(batch.inputs)
    assert mask is not None
    mask = mask.clone()
    mask[place, -1] = 0
    return replace(batch, inputs=batch.inputs | {MASK: mask})


def is_right_padded(mask: Tensor) -> bool:
    """Tell whether a mask `(B, L)` is ones, then zeros."""
    ones = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    return torch.equal(mask.to(torch.float64), ones.to(torch.float64))


def extent_of(mask: Tensor) -> Extent:
    """Return the extent of samples by their mask `(B, L)`; 0 is padding."""
    shortest, longest = (mask != 0).sum(1).aminmax()
    return Extent(mask.shape[1], int(shortest), int(longest))


def lengths_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens of each sample, `(B,)`, by a mask of ones, then zeros."""
    return inputs[MASK].sum(1)


def without_padding(row: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what a store gives back for a ragged `row` `(B, L, ...)`.

    That is zeros behind the end of every sample.
    """
    mask = inputs[MASK]
    ended = (mask == 0).reshape(*mask.shape, *[1] * (row.ndim - 2))
    return row.masked_fill(ended, 0)
