"""Name the blocks of a network, by the names and depths of its parameters alone; never torch."""

from collections.abc import Iterable, Mapping, Set as AbstractSet
from typing import Protocol, TypeVar


class InBlock(Protocol):
    """A parameter, as far as its block is decided by it."""

    @property
    def name(self) -> str:
        """Full name, as in `named_parameters`."""
        ...

    @property
    def depth(self) -> int | None:
        """Index of its block, counted from the input; None outside of blocks."""
        ...


P = TypeVar("P", bound=InBlock)


def by_block(parameters: Iterable[P]) -> dict[str, list[P]]:
    """Group parameters by block, or by the first two segments of their names outside the blocks."""
    parameters = list(parameters)
    # Which numbered path counts blocks is seen from the depths below it, see `_block_of`.
    depths: dict[str, set[int]] = {}
    for param in parameters:
        for path in _numbered(param.name):
            depths.setdefault(path, set()).update([] if param.depth is None else [param.depth])
    folded: dict[str, list[P]] = {}
    for param in parameters:
        folded.setdefault(_block_of(param, depths), []).append(param)
    return folded


def _block_of(param: InBlock, depths: Mapping[str, AbstractSet[int]]) -> str:
    """Return the name of a block: its path up to the block's index; else the first two segments.

    The block's index is the first one with a single depth below it. Earlier numbers are those of
    layers without a name, or of stages.
    """
    if param.depth is not None and (paths := _numbered(param.name)):
        return next((path for path in paths if len(depths[path]) == 1), paths[-1])
    segments = param.name.split(".")
    # The last segment is the parameter itself, not a module.
    return ".".join(segments[: min(2, len(segments) - 1)])


def _numbered(name: str) -> list[str]:
    """Return the prefixes of a name that end with a number, the shortest first."""
    segments = name.split(".")
    places = [place for place, segment in enumerate(segments) if segment.isdigit()]
    return [".".join(segments[: place + 1]) for place in places]
