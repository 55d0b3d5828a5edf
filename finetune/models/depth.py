"""Find the block of a network that each parameter belongs to, counted from the input."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from finetune.importing import require

_OUTSIDE = "\0"
"""A name that no parameter has: timm puts it into the group of names that no matcher takes."""


class _BlockList(NamedTuple):
    """The children of one class in a module list."""

    rank: int
    """How likely they are blocks: 2 is a class of its own, 1 a container, 0 a bare layer."""
    type: type[nn.Module]
    blocks: list[tuple[str, nn.Module]]
    """Full names and modules of the children."""


def block_depths(model: nn.Module) -> dict[str, int]:
    """Return the block index of each parameter that lies in a block, 0 nearest to the input.

    The first rule that applies to any part of the model decides:

    1. A timm network: timm's own grouping. A norm that timm counts with the last block counts
       with it here too; stem and head are in no block.
    2. The longest `ModuleList` or `Sequential` with two or more children of one class, and all
       other lists of that class, so that stages are counted through. What is beside the blocks
       (embeddings, heads) is in no block.
    3. The children that have parameters, in order.
    3. The children that have parameters, in order.
    """
    for prefix, module in model.named_modules():
        # The first part that timm knows: a head declared around it adds no blocks.
        depths = _timm_depths(module)
        if depths:
            dot = f"{prefix}." if prefix else ""
            return {f"{dot}{name}": depth for name, depth in depths.items()}
    return {
        f"{block_name}.{name}": depth
        for depth, (block_name, block) in enumerate(_blocks(model) or _children(model))
        for name, _ in block.named_parameters()
    }


def _timm_depths(module: nn.Module) -> dict[str, int]:
    """Return timm's block index by parameter name; empty if the module is not a timm network."""
    matcher = getattr(module, "group_matcher", None)
    # Classes of other libraries may have a method of this name that means something else.
    if matcher is None or not any(cls.__module__.startswith("timm.") for cls in type(module).mro()):
        return {}
    groups = matcher()
    if not isinstance(groups, Mapping) or groups.get("blocks") is None:
        return {}
    timm = require("timm.models._manipulate", extra="vision")
    named = [*module.named_parameters(), (_OUTSIDE, None)]
    depths: dict[str, int] = timm.group_with_matcher(
        iter(named), {"blocks": groups["blocks"]}, reverse=True
    )
    return {name: depth for name, depth in depths.items() if depth != depths[_OUTSIDE]}


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks of the best list and of all lists of the same class, in order."""
    lists = [found for prefix, module in _lists(model) if (found := _like_children(prefix, module))]
    long = [found for found in lists if len(found.blocks) > 1]
    if not long:
        return []
    # The kind counts before the length: twelve attention blocks beat a list of twenty convolutions.
    best = max(long, key=lambda found: (found.rank, len(found.blocks)))
    blocks: list[tuple[str, nn.Module]] = []
    for found in lists:
        # A block may hold a list of its own class (nested stages): its parts are no blocks again.
        inside = any(found.blocks[0][0].startswith(f"{name}.") for name, _ in blocks)
        if (found.rank, found.type) == (best.rank, best.type) and not inside:
            blocks += found.blocks
    return blocks


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module list and sequential, with its name."""
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield prefix, module


def _like_children(prefix: str, module: nn.Module) -> _BlockList | None:
    """Return the children of the commonest block-like class of a list, or None if there are none.

    Block-like is what has parameters and, in a list of several classes, layers of its own: nobody
    would count the convolutions of `Sequential(Conv2d, ReLU, Conv2d)` as blocks.
    """
    children = list(module.named_children())
    pure = len({type(child) for _, child in children}) == 1
    fit = [child for _, child in children if _has_parameters(child) and (pure or _parts(child))]
    if not fit:
        return None
    commonest = Counter(type(child) for child in fit).most_common(1)[0][0]
    dot = f"{prefix}." if prefix else ""
    blocks = [(f"{dot}{name}", child) for name, child in children if type(child) is commonest]
    container = issubclass(commonest, nn.ModuleList | nn.Sequential)
    rank = 0 if not _parts(blocks[0][1]) else 1 if container else 2
    return _BlockList(rank, commonest, blocks)


def _children(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children that have parameters, at the first level with more than one of them."""
    prefix, module = "", model
    while True:
        dot = f"{prefix}." if prefix else ""
        children = [
            (f"{dot}{name}", child)
            for name, child in module.named_children()
            if _has_parameters(child)
        ]
        # A wrapper of one child says nothing about blocks; look inside it.
        if len(children) != 1 or not _parts(children[0][1]):
            return children
        prefix, module = children[0]


def _has_parameters(module: nn.Module) -> bool:
    """Tell whether a module or anything below it has parameters."""
    return next(module.parameters(), None) is not None


def _parts(module: nn.Module) -> bool:
    """Tell whether a child of the module has parameters."""
    return any(_has_parameters(child) for child in module.children())
