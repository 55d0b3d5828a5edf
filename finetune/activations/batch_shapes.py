"""Batch shapes and padding, and digests of samples, which depend on neither.

A digest is stored beside the row of its sample: by it the sample is known again in other data.

Letters: B samples of a batch, L tokens that it is padded to.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.data.batches import MASK, Batch, Extent, Samples, Split
from finetune.models.detectors import Detector
from finetune.store.layout import RowSpec

SAMPLE = "digest of the sample"
"""Name under which a store keeps the digests. No output of a call is called so."""
_DIGEST = RowSpec((3,), "int64")
"""Two numbers of the digest, and the origin of the row."""
_REMEDY = "{type: Resize, size: [H, W], with: [TARGET]} brings all to one size"


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


def why_company_decides(model: nn.Module, splits: Collection[Samples]) -> str | None:
    """Return why a sample would have other rows in other company; None if it has not.

    A batch of images is as large as its largest one, so frozen layers see a smaller one with more
    padding than alone. Two small trial batches need not show that.
    """
    known = [samples.image_sizes for samples in splits]
    if any(sizes is None for sizes in known):
        return (
            "not stored, a transform makes images of sizes that are not known beforehand, and a "
            f"batch pads each to its largest one; {_REMEDY}"
        )
    sizes = sorted({size for found in known for size in found or ()})
    detectors = [one for one in model.modules() if isinstance(one, Detector)]
    if len(sizes) < 2:
        return None
    first = [one.size_seen(sizes[0]) for one in detectors]
    for size in sizes[1:]:
        # Where a network brings them all to one size, no image makes another one larger.
        if not first or [one.size_seen(size) for one in detectors] != first:
            (high, wide), (height, width) = sizes[0], size
            return (
                f"not stored, a batch pads images to its largest one, and they differ in size "
                f"({high} x {wide}, {height} x {width}): the outputs of a sample depend on the "
                f"others of its batch; {_REMEDY}"
            )
    return None


def with_digests(specs: Mapping[str, RowSpec]) -> dict[str, RowSpec]:
    """Return the outputs of a store, and beside them the digest of each sample."""
    return {**specs, SAMPLE: _DIGEST}


def labels_of(inputs: Mapping[str, Tensor], padded: Collection[str], shape: Shape | None) -> Tensor:
    """Return digest (see `digests_of`) and origin of each sample of a batch, `(B, 3)` int64.

    Kernels may round a row otherwise in a batch of another shape, so the origin is a hash of the
    `shape` in which rows are computed; None stands for a full batch.
    """
    digests = digests_of(inputs, padded)
    name = "" if shape is None else str(shape)
    origin = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
    return torch.cat([digests, digests.new_full((len(digests), 1), origin)], dim=1)


def digests_of(inputs: Mapping[str, Tensor], padded: Collection[str]) -> Tensor:
    """Return a digest of all that the network gets of each sample, `(B, 2)` int64.

    Padding does not count, so that a sample has the same digest in every batch. Zeros on other
    devices than a CPU, where to copy the inputs back may take longer than the network does.

    Args:
        inputs: All that the network gets of the batch.
        padded: Names of its columns that are padded. Others may be as wide as these by chance.
    """
    first = next(iter(inputs.values()))
    if first.device.type != "cpu":
        return torch.zeros(len(first), 2, dtype=torch.int64)
    mask = mask_of(inputs)
    lengths = mask.sum(1).tolist() if mask is not None and is_right_padded(mask) else None
    digests = [blake2b(digest_size=16) for _ in range(len(first))]
    for name, values in sorted(inputs.items()):
        is_cut = mask is not None and name in padded and values.shape[1] == mask.shape[1]
        for row, digest in enumerate(digests):
            value = values[row]
            if is_cut and lengths is not None:
                value = value[: int(lengths[row])]
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            # As bytes, since numpy has no bfloat16.
            digest.update(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    whole = bytearray(b"".join(digest.digest() for digest in digests))
    return torch.frombuffer(whole, dtype=torch.int64).reshape(-1, 2)
