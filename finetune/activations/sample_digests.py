"""Digests of samples, stored beside their rows: by them a sample is known again in other data.

Letters: B samples of a batch, L tokens.
"""

from collections.abc import Collection, Mapping
from hashlib import blake2b

import torch
from torch import Tensor

from finetune.activations.batch_shapes import Shape, is_right_padded, mask_of
from finetune.store.layout import RowSpec

SAMPLE = "digest of the sample"
"""Name under which a store keeps the digests. No output of a call is called so."""
_SPEC = RowSpec((3,), "int64")
"""Two numbers of the digest, and the origin of the row."""


def with_digests(specs: Mapping[str, RowSpec]) -> dict[str, RowSpec]:
    """Return the outputs of a store, and beside them the digest of each sample."""
    return {**specs, SAMPLE: _SPEC}


def labels_of(inputs: Mapping[str, Tensor], padded: Collection[str], shape: Shape | None) -> Tensor:
    """Return digest and origin of each sample of a batch, `(B, 3)` int64.

    Kernels may round a row otherwise in a batch of another shape, so the origin tells that shape.

    Args:
        inputs: All that the network gets of the batch.
        padded: Names of its columns that are padded.
        shape: Shape of the batch that its rows are computed in; None if they are those of a full
            batch, whatever their own is.
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
