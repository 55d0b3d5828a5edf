"""Which block of a network each parameter lies in, counted from the input."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from finetune.importing import require

_OUTSIDE = "\0"
"""A name that no parameter has and no matcher takes: its group is that of names left over."""


class _BlockList(NamedTuple):
    """The like children of one module list."""

    rank: int
    """How much they are like blocks: a class of its own 2, a plain container 1, a bare layer 0."""
    type: type[nn.Module]
    blocks: list[tuple[str, nn.Module]]
    """Full names and modules."""


def block_depths(model: nn.Module) -> dict[str, int]:
    """Return the block index of every parameter that lies in a block, 0 nearest the input.

    The first of these that applies to any part of the model counts:

    1. A timm network: timm's own grouping. What timm counts to the last block (a norm after it)
       is counted so here; its stem and head lie in no block.
    2. The longest `ModuleList` or `Sequential` of two or more children of one class, and every
       other list that holds the same class: a network in stages counts through them. What lies
       beside the blocks (embeddings, heads) lies in no block.
    3. The children that have parameters, in order.
    """
    for prefix, module in model.named_modules():
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
    """Return timm's block index of the module's parameters; nothing if it is not a timm network."""
    matcher = getattr(module, "group_matcher", None)
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
    """Return the blocks of the longest list and of every list of the same class, in order."""
    lists = [found for prefix, module in _lists(model) if (found := _like_children(prefix, module))]
    long = [found for found in lists if len(found.blocks) > 1]
    if not long:
        return []
    best = max(long, key=lambda found: (found.rank, len(found.blocks)))
    blocks: list[tuple[str, nn.Module]] = []
    for found in lists:
        inside = any(found.blocks[0][0].startswith(f"{name}.") for name, _ in blocks)
        if (found.rank, found.type) == (best.rank, best.type) and not inside:
            blocks += found.blocks
    return blocks


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield prefix, module


def _like_children(prefix: str, module: nn.Module) -> _BlockList | None:
    """Return the children of the commonest class that is like a block, if there is any.

    In a list of several classes a bare layer is no block: the convolutions of a
    `Sequential(Conv2d, ReLU, Conv2d)` are not what a user counts.
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
    """Return the children that have parameters, from the first level that has several."""
    prefix, module = "", model
    while True:
        dot = f"{prefix}." if prefix else ""
        children = [
            (f"{dot}{name}", child)
            for name, child in module.named_children()
            if _has_parameters(child)
        ]
        if len(children) != 1 or not _parts(children[0][1]):
            return children
        prefix, module = children[0]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _parts(module: nn.Module) -> bool:
    """Whether some child of the module has parameters."""
    return any(_has_parameters(child) for child in module.children())
