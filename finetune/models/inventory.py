"""The inventory of a model: one row of plain data per parameter, for selectors to ask."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from finetune.models.depth import block_depths

# Names of parameters and classes in torch, timm, transformers and their like; `bias_ih_l0` is an
# LSTM's.
_BIAS = re.compile(r"(.*_)?bias|bias_(ih|hh)(_l\d+(_reverse)?)?|bias_[kv]")
_NORM = re.compile(r".*Norm(\d|d|Act|Tlu|Gated|Fp32|[BS]\da?)*")
_DROPOUT = re.compile(r".*Dropout\d?d?|DropPath|StochasticDepth")
_EMBEDDING = re.compile(r".*Embeddings?|EmbeddingBag")


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """What is known about one parameter, without its tensor."""

    name: str
    """Full name, as in `named_parameters`."""
    shape: tuple[int, ...]
    """Sizes of its axes."""
    dtype: str
    """Name of its element type, such as `float32`."""
    size_bytes: int
    """Size of its elements in bytes."""
    kinds: frozenset[str]
    """`bias` or `weight`; also `norm` or `embedding`, by the module that owns it."""
    types: tuple[str, ...]
    """Class names of the owning module and all modules above it, with their base classes."""
    depth: int | None
    """Index of its block, counted from the input; None outside of blocks."""
    module: str
    """Full name of the module that owns it directly."""
    aliases: tuple[str, ...]
    """Other names of the same tensor, if it is tied."""
    floating: bool
    """Whether it can have a gradient."""
    slice_of: int | None = None
    """Number of rows of the whole parameter if this is a slice of rows; else None."""

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return prod(self.shape)


def take_inventory(model: nn.Module) -> tuple[ParamInfo, ...]:
    """Return a row for each parameter of `model`, in the order of `named_parameters`.

    Tied parameters appear once. Blocks are counted by `depth.block_depths`: timm's own grouping,
    else the longest list of equal blocks, else the children in order.
    """
    # `named_parameters` gives only the first name of a tied tensor; selectors must know all of
    # them.
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    depths = block_depths(model)
    return tuple(
        _row(model, names[id(parameter)], parameter, depths.get(name))
        for name, parameter in model.named_parameters()
    )


def num_blocks(inventory: Iterable[ParamInfo]) -> int:
    """Return the number of blocks in an inventory."""
    return 1 + max((param.depth for param in inventory if param.depth is not None), default=-1)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, by the names of its class and bases."""
    # Modules for weight and spectral norm are named like norms, but compute weights.
    if type(module).__module__ == "torch.nn.utils.parametrizations":
        return False
    return any(_NORM.fullmatch(name) for name in _class_names(module))


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a module is dropout, by the names of its class and bases."""
    return any(_DROPOUT.fullmatch(name) for name in _class_names(module))


def _row(
    model: nn.Module, names: list[str], parameter: nn.Parameter, depth: int | None
) -> ParamInfo:
    """Return the row of one parameter."""
    owner, leaf = _owner_and_leaf(names[0])
    own_types = _class_names(model.get_submodule(owner))
    return ParamInfo(
        name=names[0],
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        size_bytes=parameter.numel() * parameter.element_size(),
        kinds=_kinds(leaf, own_types),
        types=tuple(dict.fromkeys((*own_types, *_types_above(model, owner)))),
        depth=depth,
        module=owner,
        aliases=tuple(names[1:]),
        floating=parameter.is_floating_point() or parameter.is_complex(),
    )


def _owner_and_leaf(name: str) -> tuple[str, str]:
    """Return module and attribute of a parameter's name, without torch's parametrizations.

    `fc.parametrizations.weight.original0` is how torch stores `fc.weight` under weight norm.
    """
    owner, _, leaf = name.rpartition(".")
    outer, parametrized, attribute = owner.rpartition("parametrizations.")
    return (outer.removesuffix("."), attribute) if parametrized else (owner, leaf)


def _types_above(model: nn.Module, owner: str) -> Iterator[str]:
    """Yield the class names of all modules above `owner` but the root, the nearest first."""
    while owner := owner.rpartition(".")[0]:
        yield from _class_names(model.get_submodule(owner))


def _class_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's class and its bases, up to `nn.Module`."""
    classes = type(module).__mro__
    return tuple(cls.__name__ for cls in classes[: classes.index(nn.Module)])


def _kinds(leaf: str, types: tuple[str, ...]) -> frozenset[str]:
    """Return the kinds of a parameter, by its attribute and the classes of its module."""
    kinds = {"bias" if _BIAS.fullmatch(leaf) else "weight"}
    if any(_NORM.fullmatch(name) for name in types):
        kinds.add("norm")
    if any(_EMBEDDING.fullmatch(name) for name in types):
        kinds.add("embedding")
    return frozenset(kinds)
