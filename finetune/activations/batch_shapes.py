"""Batch shapes and padding, which of them are exact, and digests of samples, which need neither.

A digest is stored beside the row of its sample: by it the sample is known again in other data.
Results of trials of shapes are kept beside the rows, so that a warm run does not repeat them.

Letters: B samples of a batch, L tokens that it is padded to.
"""

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune import disk
from finetune.data.batches import MASK, Batch, Extent, Samples, Split
from finetune.models.detectors import Detector
from finetune.reading import read_at_most
from finetune.store.layout import RowSpec

SAMPLE = "digest of the sample"
"""Name under which a store keeps the digests. No output of a call is called so."""
_DIGEST = RowSpec((3,), "int64")
"""Two numbers of the digest, and the origin of the row."""
_REMEDY = "{type: Resize, size: [H, W], with: [TARGET]} brings all to one size"
_LARGEST = 4 << 20
"""Upper bound on the size of a file of results. A larger one is ignored, as none of ours."""
_MOST_NETWORKS = 16
"""Upper bound on the networks in such a file; those tried longest ago are dropped."""


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


class Verdicts:
    """For one network and each shape: None if its batches are exact, else the reason why not.

    Several processes may add to one file. If two add at the same moment, one result may be lost;
    it is then tried again.

    Args:
        path: Their file; None keeps them in memory.
        network: Key of all that trials depend on besides the rows.
    """

    def __init__(self, path: Path | None, network: str) -> None:
        self._path, self._network = path, network
        self._known: dict[str, str | None] = dict(_read(path).get(network, {}) if path else {})

    def __contains__(self, shape: str) -> bool:
        """Tell whether a shape was tried."""
        return shape in self._known

    def __getitem__(self, shape: str) -> str | None:
        """Return why batches of a shape are not exact; None if they are."""
        return self._known[shape]

    def add(self, shape: str, fault: str | None, *, is_lasting: bool = True) -> None:
        """Add the result of a trial. If the file cannot be written, only this process keeps it.

        Args:
            shape: Name of the shape.
            fault: Why its batches are not exact; None if they are.
            is_lasting: Whether another process would find the same; else it is not saved.
        """
        self._known[shape] = fault
        if self._path is None or not is_lasting:
            return
        # Read again, since other processes add to the same file.
        everything = _read(self._path)
        known = everything.pop(self._network, {}) | {shape: fault}
        everything = dict([*everything.items(), (self._network, known)][-_MOST_NETWORKS:])
        text = json.dumps(everything)
        # Without a digest a flipped bit could turn a reason into "exact".
        content = f"{_digest(text)}\n{text}".encode()
        # A trial that is not saved is made again: no reason to end a run.
        with suppress(OSError):
            disk.replace_file(self._path, content, tag=str(os.getpid()))

    def forget(self) -> None:
        """Remove the results of all processes."""
        self._known = {}
        if self._path is not None:
            with suppress(OSError):
                disk.remove(self._path)


def _read(path: Path) -> dict[str, dict[str, str | None]]:
    """Return the results by network and shape; none if the file is damaged."""
    try:
        with disk.open_to_read(path) as file:
            digest, _, text = read_at_most(file, _LARGEST).decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, Any] = json.loads(text) if digest == _digest(text) else {}
    return found


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
