"""Batch shapes and padding.

Letters: B samples of a batch, L tokens that it is padded to.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from finetune.data.batches import MASK, Batch, Extent


class Split(Protocol):
    """The part of `data.batches.Samples` that the cache uses."""

    @property
    def name(self) -> str:
        """Return the name of the split: key of its cache."""

    @property
    def views(self) -> int | None:
        """Return how many random views a sample has; None if every epoch draws a new one."""

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def padded(self) -> frozenset[str]:
        """Names of the columns that are padded to the tokens of a batch."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample; None if batches are not padded."""

    @property
    def has_shorter(self) -> bool:
        """Whether some samples are shorter than the longest."""

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how many tokens the samples at `indices` have in a batch: padded, least, most.

        None if that is not known.
        """

    def fetch(
        self,
        indices: Tensor,
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return a batch of the samples at `indices`; see `Samples.fetch`."""


class Shape(NamedTuple):
    """Sizes and padding of a batch: kernels, and so bits, may depend on them."""

    size: int
    """Samples of the batch."""
    length: int | None = None
    """L; None without tokens."""
    is_padded: bool = False
    """Whether any sample is padded. If none is, networks may drop the mask."""
    longest: int | None = None
    """Tokens of the longest sample if all are padded: networks may cut off the rest."""

    @classmethod
    def of(cls, samples: Split, indices: Tensor, length: int | None = None) -> "Shape":
        """Return the shape of a batch of the samples at `indices`.

        It is padded to `length`, or if None to the longest of them.
        """
        extent = samples.extent(indices.cpu())
        if extent is None:
            return cls(len(indices))
        width = length or extent.width
        # Networks such as packed LSTMs cut off the positions that are padding in all samples.
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
    """Return the attention mask `(B, L)`, if there is one."""
    mask = inputs.get(MASK)
    return mask if mask is not None and mask.ndim == 2 else None


def shortened(batch: Batch, place: int) -> Batch:
    """Return a copy of a batch in which the last token of the sample at `place` is masked."""
    mask = mask_of(batch.inputs)
    assert mask is not None
    # Copied, since the batch belongs to the caller.
    mask = mask.clone()
    mask[place, -1] = 0
    return replace(batch, inputs=batch.inputs | {MASK: mask})


def is_right_padded(mask: Tensor) -> bool:
    """Tell whether each row of a mask `(B, L)` is ones followed by zeros."""
    ones = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    # Compared as numbers: masks may be bool, integers or floats.
    return torch.equal(mask.to(torch.float64), ones.to(torch.float64))


def extent_of(mask: Tensor) -> Extent:
    """Return the padded, the least and the greatest length by a mask `(B, L)`; 0 is padding."""
    shortest, longest = (mask != 0).sum(1).aminmax()
    return Extent(mask.shape[1], int(shortest), int(longest))


def lengths_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the number of tokens of each sample, `(B,)`, of right-padded inputs."""
    return inputs[MASK].sum(1)


def without_padding(row: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a ragged `row` `(B, L, ...)` with zeros behind the end of each sample."""
    mask = inputs[MASK]
    # With as many axes as the row, so that it is broadcast over the others.
    ended = (mask == 0).reshape(*mask.shape, *[1] * (row.ndim - 2))
    return row.masked_fill(ended, 0)
