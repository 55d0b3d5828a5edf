"""Digests of the tensors in safetensors files, without torch."""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.reading import check_safetensors, parse_json_object
from finetune.runs.headers import StoredTensor

TYPES = {
    **{"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16"},
    **{"BF16": "torch.bfloat16", "I64": "torch.int64", "I32": "torch.int32"},
    **{"I16": "torch.int16", "I8": "torch.int8", "U8": "torch.uint8", "BOOL": "torch.bool"},
}
"""Types of numbers as safetensors and as torch write them."""
_WIDER = ("F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Hashes over type, shape and bytes of a tensor."""

    sha256: str
    fingerprint: str
    """The short hash by which proofs know tensors; see `finetune.bits`."""


class TensorFiles:
    """The tensors of a safetensors file, or of all such files in a folder.

    Args:
        path: The file or folder.

    Raises:
        FinetuneError: there is no such file, or a header is damaged.
    """

    def __init__(self, path: Path) -> None:
        # Sorted: where two files hold a tensor of one name, the same one counts every time.
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FinetuneError("holds no file *.safetensors", where=str(path))
        self._places: dict[str, tuple[Path, StoredTensor]] = {}
        for file in files:
            self._places |= {name: (file, one) for name, one in _header_of(file).items()}

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._places)

    def digests(
        self, wanted: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], TensorDigest | None]]:
        """Yield the digest of each wanted tensor; None if the file does not hold it whole.

        Args:
            wanted: Name and type of each tensor, as torch writes it. Floats of 16 bits are made
                float32 where that is wanted, which is exact.
        """
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for name, dtype in wanted:
            by_file.setdefault(self._places[name][0], []).append((name, dtype))
        for file, both in by_file.items():
            with (
                # Mapped, not read: a file of weights may be larger than the memory.
                file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                for name, dtype in both:
                    found = _digest(memoryview(content), self._places[name][1], dtype)
                    yield (name, dtype), found


def _header_of(path: Path) -> dict[str, StoredTensor]:
    """Return type, shape and position of each tensor, also of those that a cut file lacks.

    Raises:
        FinetuneError: the header is damaged.
    """
    check_safetensors(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json_object(file.read(length), str(path))
    header.pop("__metadata__", None)
    try:
        return {name: _entry(entry, 8 + length) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise FinetuneError("has a damaged header", where=str(path)) from error


def _entry(entry: Any, data_begins: int) -> StoredTensor:
    """Return one entry of a header; raise if it is none."""
    (begins, ends), shape = entry["data_offsets"], tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begins, ends, *shape)):
        raise ValueError("no position or shape")
    return StoredTensor(str(entry["dtype"]), shape, data_begins + begins, data_begins + ends)


def digest_of(dtype: str, shape: tuple[int, ...], raw: memoryview | bytes) -> TensorDigest:
    """Return the hashes of a tensor.

    Args:
        dtype: Type as torch writes it, such as `torch.float32`.
        shape: Its shape.
        raw: Its bytes.
    """
    head = f"{dtype}{tuple(shape)}".encode()
    long, short = sha256(head), blake2b(head, digest_size=16)
    long.update(raw)
    short.update(raw)
    return TensorDigest(long.hexdigest(), short.hexdigest())


def _digest(content: memoryview, tensor: StoredTensor, wanted: str) -> TensorDigest | None:
    """Return the digest of a tensor in a file; None if it is not whole there."""
    # Each view is released: a map with a view that is left cannot be closed.
    with content:
        # A download that broke off has a whole header all the same.
        if tensor.ends > len(content):
            return None
        # A header may lie about positions; half a number cannot be widened.
        if tensor.dtype in _WIDER and (tensor.ends - tensor.begins) % 2:
            return None
        with content[tensor.begins : tensor.ends] as raw:
            dtype = TYPES.get(tensor.dtype, tensor.dtype)
            if dtype != wanted == TYPES["F32"] and tensor.dtype in _WIDER:
                return digest_of(wanted, tensor.shape, _widened(raw, tensor.dtype))
            return digest_of(dtype, tensor.shape, raw)


def _widened(raw: memoryview, dtype: str) -> bytes:
    """Return floats of 16 bits as float32, which holds each of them."""
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype("<f4").tobytes()
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).tobytes()
