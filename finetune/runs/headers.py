"""Compare a checkpoint with `plan.json` by its tensor headers; needs neither network nor torch.

This works on any machine. Resuming a run compares the checkpoint with the network itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from finetune.disk import open_to_read
from finetune.errors import CheckpointError, FinetuneError, named
from finetune.reading import check_safetensors, parse_json_object
from finetune.runs.checkpoint_folder import read_progress
from finetune.runs.manifest import UNAVERAGED, read_manifest

_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0_0000_0000_0000),
    "F32": (np.dtype("<u4"), 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
"""Exponent bits per number format: all are set in infinity and NaN, and in no other number."""

_MAX_AXES, _MAX_NUMBERS = 64, 2**63 - 1
"""Most axes of a tensor, and the longest axis, that torch allows."""


class StoredTensor(NamedTuple):
    """Type, shape and position of a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begins: int
    """Offset of its first byte in the file."""
    ends: int


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """What `plan.json` says about a checkpoint's tensors."""

    num_phases: int | None
    """How many phases there are; None where a policy makes them as training goes."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor that is trained in any phase, by name."""

    @classmethod
    def read(cls, document: Any) -> Self:
        """Return the plan that a parsed `plan.json` holds.

        Raises:
            ValueError: the document is not what a run writes.
        """
        try:
            trained = set(document["ever_trained"])
            states = document["phases"][0]["states"]
            shapes = {str(s["name"]): tuple(s["shape"]) for s in states if s["name"] in trained}
            num_phases = None if "policy" in document else len(document["phases"])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError("is not what a run writes") from error
        if shapes.keys() != trained:
            raise ValueError("names what it does not describe")
        return cls(num_phases, shapes)

    def misfit(self, checkpoint: Path) -> str | None:
        """Return why a whole checkpoint does not fit the plan, or None if it fits."""
        try:
            phase, moved = read_progress(checkpoint).phase, read_manifest(checkpoint).moved_buffers
            weights = stored_tensors(checkpoint / "weights.safetensors")
            state = stored_tensors(checkpoint / "optimizer.safetensors")
            unaveraged = _unaveraged(checkpoint)
        except CheckpointError as error:
            return error.message
        # First what is cheap to see; the values of all tensors are read last.
        if self.num_phases is not None and phase >= self.num_phases:
            return f"phase {phase} is none of the {self.num_phases} of the plan"
        if odd := sorted(weights.keys() ^ {*self.shapes, *moved}):
            return f"weights.safetensors does not hold what the plan trains: {named(odd)}"
        if odd := [n for n, shape in self.shapes.items() if weights[n].shape != shape]:
            return f"{named(odd)} has another shape than in the plan"
        if odd := [n for n, one in unaveraged.items() if one.shape != self.shapes.get(n)]:
            return f"{UNAVERAGED}: {named(odd)} is not what the plan trains"
        if odd := [
            *_non_finite(checkpoint / "weights.safetensors", weights),
            *_non_finite(checkpoint / UNAVERAGED, unaveraged),
        ]:
            return f"{named(odd)} is infinite or NaN"
        # Labels of optimizer state are `parameter//field`.
        if odd := sorted({label.partition("//")[0] for label in state} - self.shapes.keys()):
            return f"it has optimizer state of {named(odd)}, which never trains"
        return None


def _unaveraged(checkpoint: Path) -> dict[str, StoredTensor]:
    """Return the weights as trained of parameters that have an average; empty if none has."""
    has_average = UNAVERAGED in read_manifest(checkpoint).files
    return stored_tensors(checkpoint / UNAVERAGED) if has_average else {}


def _non_finite(path: Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Return the names of the tensors in a file that hold infinity or NaN."""
    return [name for name, one in tensors.items() if not _is_finite(path, one)]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return type, shape and position of each tensor, from the header of a safetensors file.

    Raises:
        CheckpointError: the header is damaged.
    """
    try:
        # First, since a header may claim any length, and all of it would be read.
        check_safetensors(path)
        with open_to_read(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json_object(file.read(length), path.name)
        size = path.stat().st_size - 8 - length
        # The one entry that is no tensor.
        header.pop("__metadata__", None)
        return {name: _read_entry(entry, 8 + length, size) for name, entry in header.items()}
    except (FinetuneError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has a damaged header", where=str(path)) from error


def _read_entry(entry: Any, data_begins: int, size: int) -> StoredTensor:
    """Return one header entry, after checking that it lies inside the file and fits its size."""
    begins, ends = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    numbers = (begins, ends, *shape)
    if not all(type(number) is int and number >= 0 for number in numbers) or ends > size:
        raise ValueError("a tensor outside the file")
    if len(shape) > _MAX_AXES or max(shape, default=0) > _MAX_NUMBERS:
        raise ValueError("a tensor of no shape that torch has")  # its product might never end
    if dtype in _EXPONENTS and ends - begins != math.prod(shape) * _EXPONENTS[dtype][0].itemsize:
        raise ValueError("a tensor of another size")
    return StoredTensor(str(dtype), shape, data_begins + begins, data_begins + ends)


def _is_finite(path: Path, one: StoredTensor) -> bool:
    """Tell whether a stored tensor has neither infinity nor NaN; integers always pass."""
    if one.dtype not in _EXPONENTS or one.begins == one.ends:
        return True
    word, exponent = _EXPONENTS[one.dtype]
    with open_to_read(path) as file:
        count = (one.ends - one.begins) // word.itemsize
        bits = np.fromfile(file, word, count, offset=one.begins)
    # On bits, since numpy has no bfloat16.
    return not bool(((bits & exponent) == exponent).any())
