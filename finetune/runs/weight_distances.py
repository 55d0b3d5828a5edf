"""How far the weights of two runs are apart, block by block, read from their checkpoints in pieces.

Only what a run has ever trained is in its checkpoints; all else is the base, which is compared by
its fingerprint.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.block_names import by_block
from finetune.disk import open_to_read
from finetune.reading import read_own_json
from finetune.runs.headers import StoredTensor, stored_tensors
from finetune.runs.manifest import read_manifest

_PIECE = 1 << 20
"""Numbers of a tensor that are in memory at once."""
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    # The upper half of a float32; numpy has no such type.
    "BF16": "<u2",
}
"""Types that are compared. Whole numbers are left out: as counters they would hide all weights."""


@dataclass(frozen=True, slots=True)
class BlockDistance:
    """The tensors of one block in two runs."""

    block: str
    tensors: int
    """Tensors that both runs have trained and that have one shape."""
    equal: int
    """How many of these are bit-identical."""
    distance: float
    """Euclidean norm of the difference over all their numbers: `||a - b||`."""
    relative: float
    """`||a - b|| / ||a||`; infinite if all of `a` is 0 and `b` is not."""
    only_first: int
    """Tensors that only the first run has trained."""
    only_second: int
    left_out: int
    """Tensors of whole numbers, and those of another shape in the second run."""


@dataclass(frozen=True, slots=True)
class WeightDistances:
    """The trained weights of two runs."""

    same_base: bool
    """Whether all that was never trained is bit-identical in both."""
    blocks: tuple[BlockDistance, ...]


class _Place(NamedTuple):
    name: str
    depth: int | None


def weight_distances(first: Path, second: Path, plan: Path) -> WeightDistances:
    """Compare the weights of two checkpoints.

    Args:
        first: Folder of a whole checkpoint.
        second: Folder of another one.
        plan: `plan.json` of the first run, for the blocks of its network.

    Raises:
        CheckpointError: a checkpoint is damaged.
        OSError: a file cannot be read.
    """
    files = first / "weights.safetensors", second / "weights.safetensors"
    there = stored_tensors(files[0]), stored_tensors(files[1])
    depths = _depths(plan)
    # A dict, not a set: blocks are listed in the order of the first run, then of the second.
    names = dict.fromkeys((*there[0], *there[1]))
    blocks = by_block(_Place(name, depths.get(name)) for name in names)
    return WeightDistances(
        read_manifest(first).base == read_manifest(second).base,
        tuple(
            _of_block(block, [place.name for place in places], files, there)
            for block, places in blocks.items()
        ),
    )


def _of_block(
    block: str,
    names: list[str],
    files: tuple[Path, Path],
    there: tuple[Mapping[str, StoredTensor], Mapping[str, StoredTensor]],
) -> BlockDistance:
    """Sum up the tensors of a block."""
    both = [name for name in names if name in there[0] and name in there[1]]
    comparable = [name for name in both if _is_comparable(there[0][name], there[1][name])]
    difference, size, equal = 0.0, 0.0, 0
    for name in comparable:
        squares = _squares(files, (there[0][name], there[1][name]))
        difference, size = difference + squares[0], size + squares[1]
        # NaN differs from itself: a tensor that holds one is not called equal.
        equal += squares[0] == 0
    distance = math.sqrt(difference)
    relative = distance / math.sqrt(size) if size else (math.inf if distance else 0.0)
    return BlockDistance(
        block,
        len(comparable),
        equal,
        distance,
        relative,
        sum(name not in there[1] for name in names),
        sum(name not in there[0] for name in names),
        len(both) - len(comparable),
    )


def _is_comparable(one: StoredTensor, other: StoredTensor) -> bool:
    return one.shape == other.shape and one.dtype in _TYPES and other.dtype in _TYPES


def _squares(
    files: tuple[Path, Path], tensors: tuple[StoredTensor, StoredTensor]
) -> tuple[float, float]:
    """Return the sums of squares of the difference of two tensors, and of the first one."""
    difference, size = 0.0, 0.0
    pieces = zip(_pieces(files[0], tensors[0]), _pieces(files[1], tensors[1]), strict=True)
    for one, other in pieces:
        moved = one - other
        difference += float(moved @ moved)
        size += float(one @ one)
    return difference, size


def _pieces(path: Path, tensor: StoredTensor) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yield the numbers of a stored tensor as float64, a piece at a time."""
    kind = np.dtype(_TYPES[tensor.dtype])
    left = (tensor.ends - tensor.begins) // kind.itemsize
    with open_to_read(path) as file:
        file.seek(tensor.begins)
        while left > 0:
            count = min(left, _PIECE)
            numbers = np.frombuffer(file.read(count * kind.itemsize), kind)
            if tensor.dtype == "BF16":
                # bfloat16 is a float32 without its lower half.
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            # Sums of millions of squares lose digits in float32, and all of them in float16.
            yield numbers.astype(np.float64)
            left -= count


def _depths(plan: Path) -> dict[str, int]:
    """Return the depth of each parameter by name, as far as `plan.json` says it."""
    try:
        states = read_own_json(plan)["phases"][0]["states"]
        return {str(one["name"]): one["depth"] for one in states if type(one["depth"]) is int}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}
