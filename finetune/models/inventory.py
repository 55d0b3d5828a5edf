"""A model as rows of plain data: one row per parameter, with all that selectors ask about."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from finetune.models.depth import block_depths

_BIAS = re.compile(r"(.*_)?bias|bias_(ih|hh)(_l\d+(_reverse)?)?|bias_[kv]")
_NORM = re.compile(r".*Norm(\d|d|Act|Tlu|Gated|Fp32|[BS]\da?)*")
_DROPOUT = re.compile(r".*Dropout\d?d?|DropPath|StochasticDepth")
_EMBEDDING = re.compile(r".*Embeddings?|EmbeddingBag")


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """What is known of one parameter without holding its tensor."""

    name: str
    """Full name, as `named_parameters` gives it."""
    shape: tuple[int, ...]
    """Sizes of its axes."""
    dtype: str
    """Name of its element type, such as `float32`."""
    size_bytes: int
    """Bytes of its elements."""
    kinds: frozenset[str]
    """`bias` or `weight`, and `norm` or `embedding` by the module that owns it."""
    types: tuple[str, ...]
    """Class names of the owning module and of all modules above it, with those they derive from."""
    depth: int | None
    """Index of its block from the input, or None outside blocks."""
    module: str
    """Full name of the module that owns it directly."""
    aliases: tuple[str, ...]
    """Further names of the same tensor, where it is tied."""
    floating: bool
    """Whether it can have a gradient at all."""
    slice_of: int | None = None
    """Rows of the whole parameter, where this is a slice of its rows; None for a whole one."""

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return prod(self.shape)


def take_inventory(model: nn.Module) -> tuple[ParamInfo, ...]:
    """List the parameters of `model` in the order of `named_parameters`, tied ones once.

    Blocks are counted by `depth.block_depths`: timm's own grouping, else the longest list of like
    blocks, else the children in order.
    """
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    depths = block_depths(model)
    return tuple(
        _row(model, names[id(parameter)], parameter, depths.get(name))
        for name, parameter in model.named_parameters()
    )


def num_blocks(inventory: Iterable[ParamInfo]) -> int:
    """Return how many blocks the depths of `inventory` count."""
    return 1 + max((param.depth for param in inventory if param.depth is not None), default=-1)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises activations, by its class or one that it derives from."""
    # torch computes weights under weight or spectral norm by modules named like norms
    if type(module).__module__ == "torch.nn.utils.parametrizations":
        return False
    return any(_NORM.fullmatch(name) for name in _class_names(module))


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a module drops at random in training, by its class or one it derives from."""
    return any(_DROPOUT.fullmatch(name) for name in _class_names(module))


def _row(
    model: nn.Module, names: list[str], parameter: nn.Parameter, depth: int | None
) -> ParamInfo:
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
    """Split a name into module and attribute, looking through torch's parametrizations.

    `fc.parametrizations.weight.original0` is how torch stores `fc.weight` under weight norm.
    """
    owner, _, leaf = name.rpartition(".")
    outer, parametrized, attribute = owner.rpartition("parametrizations.")
    return (outer.removesuffix("."), attribute) if parametrized else (owner, leaf)


def _types_above(model: nn.Module, owner: str) -> Iterator[str]:
    """Yield the class names of the modules above `owner`, the nearest first, without the root."""
    while owner := owner.rpartition(".")[0]:
        yield from _class_names(model.get_submodule(owner))


def _class_names(module: nn.Module) -> tuple[str, ...]:
    classes = type(module).__mro__
    return tuple(cls.__name__ for cls in classes[: classes.index(nn.Module)])


def _kinds(leaf: str, types: tuple[str, ...]) -> frozenset[str]:
    kinds = {"bias" if _BIAS.fullmatch(leaf) else "weight"}
    if any(_NORM.fullmatch(name) for name in types):
        kinds.add("norm")
    if any(_EMBEDDING.fullmatch(name) for name in types):
        kinds.add("embedding")
    return frozenset(kinds)
