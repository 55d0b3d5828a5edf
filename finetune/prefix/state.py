"""What a network keeps beside its parameters: buffers, plain attributes, the random state.

Trials run the network more often than training alone would. Nothing of that may show afterwards,
and a frozen module that keeps something of one call for the next cannot be answered from a store.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""What torch keeps in every module, hooks and tables of parameters among it."""
_CONTAINERS = (list, dict, set, deque)

AttributeName = tuple[str, str]
"""Name of a module, and of an attribute of it."""


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal bit by bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.detach().contiguous().reshape(-1) for tensor in (one, other)]
    # words compare several times faster than bytes
    words = torch.int64 if all(map(_is_made_of_words, flat)) else torch.uint8
    return torch.equal(*(tensor.view(words) for tensor in flat))


def _is_made_of_words(flat: Tensor) -> bool:
    """Tell whether a tensor of one axis begins and ends at a multiple of 8 bytes."""
    size = flat.element_size()
    return flat.numel() * size % 8 == 0 and int(flat.storage_offset()) * size % 8 == 0


def attributes(model: nn.Module) -> dict[AttributeName, Any]:
    """Return copies of all plain attributes of all modules: numbers, words, tensors, lists of them.

    What cannot be copied plainly, such as an object of one's own, is left out.
    """
    found: dict[AttributeName, Any] = {}
    for place, value in _attributes(model):
        copied = _copied(value)
        if copied is not _OTHER:
            found[place] = copied
    return found


def moved_attributes(
    before: dict[AttributeName, Any], after: dict[AttributeName, Any]
) -> set[AttributeName]:
    """Return where attributes that were there before have other values now."""
    return {
        place for place in before.keys() & after.keys() if not _equal(before[place], after[place])
    }


def loose_tensors(model: nn.Module) -> list[tuple[AttributeName, Tensor]]:
    """Return the tensors in attributes of modules that are no buffers or parameters there."""
    return [(place, tensor) for place, value in _attributes(model) for tensor in _tensors(value)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all buffers by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved_buffers(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of buffers that have other bits than before."""
    return {
        name
        for name, buffer in model.named_buffers()
        if name in before and not same_bits(buffer, before[name])
    }


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Run the block under `seed`; give buffers, attributes and random state back as they were."""
    with as_it_was(model), buffers_as_they_were(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def buffers_as_they_were(model: nn.Module) -> Iterator[None]:
    """Give the buffers back as they were, whatever the block does to them."""
    held = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, bits in held:
                buffer.copy_(bits)
                module._buffers[name] = buffer


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Give plain attributes back as they were; those that the block adds go."""
    held = [(module, _Held.of(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, before in held:
            before.give_back(module)


@contextmanager
def other_weights(model: nn.Module) -> Iterator[None]:
    """Give what is trained other values while the block runs, each of the same sign for the most.

    They are far enough from their own to turn choices that are made by them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    bits = [parameter.detach().clone() for parameter in trained]
    draw = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in trained:
                factor, shift = (torch.randn(parameter.shape, generator=draw) for _ in range(2))
                parameter.mul_(factor.exp().to(parameter)).add_(1e-3 * shift.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(trained, bits, strict=True):
                parameter.copy_(before)


@dataclass(frozen=True, slots=True)
class _Held:
    """The plain attributes of one module: the objects, and copies of what was in them."""

    names: frozenset[str]
    values: dict[str, tuple[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        own = vars(module).keys() - _OF_EVERY_MODULE
        values = {name: vars(module)[name] for name in own}
        return cls(frozenset(own), {name: (v, _content(v)) for name, v in values.items()})

    def give_back(self, module: nn.Module) -> None:
        for name in vars(module).keys() - _OF_EVERY_MODULE - self.names:
            del vars(module)[name]
        for name, (value, content) in self.values.items():
            _refill(value, content)
            vars(module)[name] = value


def _attributes(model: nn.Module) -> Iterator[tuple[AttributeName, Any]]:
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE and name != "training":
                yield (module_name, name), value


_OTHER = object()
"""Stands for what cannot be copied."""


def _copied(value: Any) -> Any:
    match value:
        case nn.Parameter():
            return _OTHER
        case Tensor():
            return value.detach().clone()
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {key: _copied(item) for key, item in value.items()}
        case list() | tuple() | deque():
            return [_copied(item) for item in value]
    return _OTHER


def _equal(one: Any, other: Any) -> bool:
    match one, other:
        case (Tensor(), Tensor()):
            return same_bits(one, other)
        case (dict(), dict()):
            return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
        case (list(), list()):
            return len(one) == len(other) and all(map(_equal, one, other))
        case (float(), float()):
            return one == other or (one != one and other != other)
    return bool(type(one) is type(other) and one == other)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | deque):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _content(value: Any) -> Any:
    """Return what is needed to fill `value` again should it be changed in place."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if isinstance(value, _CONTAINERS):
        return value.copy()
    return None


def _refill(value: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        if not same_bits(value, content):
            with torch.no_grad():
                value.copy_(content)
    elif isinstance(value, list | deque):
        value.clear()
        value.extend(content)
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
