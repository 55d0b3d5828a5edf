"""Compare tensors bit by bit and fingerprint them, whatever their layout in memory."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal bit by bit, NaN included."""
    # Equality by value would call NaN different from itself, and -0.0 the same as 0.0.
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    return all(map(_same_words, _strided_parts(one), _strided_parts(other)))


def all_same_bits(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Tell whether two lists hold as many tensors, equal in pairs bit by bit."""
    return len(some) == len(others) and all(map(same_bits, some, others))


def fingerprint(tensor: Tensor) -> str:
    """Hash dtype, shape and raw bytes. NaN payloads and signed zeros count as differences."""
    digest = blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    parts = _strided_parts(tensor)
    # Strided tensors, which are nearly all, keep the short form: a layout would change every saved
    # fingerprint.
    if tensor.layout != torch.strided:
        digest.update(f"{tensor.layout}{[tuple(part.shape) for part in parts]}".encode())
    for part in parts:
        raw = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        # Not `raw.numpy()`: its tensor could never be resized, as torch does with gathered weights.
        digest.update(np.from_dlpack(raw).data)
    return digest.hexdigest()


def _strided_parts(tensor: Tensor) -> list[Tensor]:
    """Return strided tensors that together hold all values: the tensor itself, or its parts."""
    match tensor.layout:
        case torch.strided:
            return [tensor]
        case torch.sparse_coo:
            return [tensor._indices(), tensor._values()]
        case torch.sparse_csr | torch.sparse_bsr:
            return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        case torch.sparse_csc | torch.sparse_bsc:
            return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def _same_words(one: Tensor, other: Tensor) -> bool:
    """Tell whether two strided tensors have the same shape and bytes."""
    if one.shape != other.shape:
        return False
    flat = [tensor.detach().contiguous().reshape(-1) for tensor in (one, other)]
    # words compare several times faster than bytes
    words = torch.int64 if all(map(_is_made_of_words, flat)) else torch.uint8
    return torch.equal(*(tensor.view(words) for tensor in flat))


def _is_made_of_words(flat: Tensor) -> bool:
    """Tell whether a tensor of one axis begins and ends at a multiple of 8 bytes."""
    # `view(torch.int64)` refuses an offset inside a word, as slices of float32 tensors have.
    size = flat.element_size()
    return flat.numel() * size % 8 == 0 and int(flat.storage_offset()) * size % 8 == 0
