"""Save and restore what a forward pass may change: buffers, plain attributes, random state.

The cache runs the network more often than training alone would, and none of these extra passes may
have an effect. Also used to find modules that keep state between calls, which cannot be cached.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.bits import same_bits
from finetune.randomness import random_state_kept, seed_all
from finetune.structure import ATTRIBUTES, folded, values_in

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that torch has in every module, such as hooks and the table of parameters."""
_CONTAINERS = (list, dict, set, deque)
"""Types that hold other values and may be changed in place."""
_COPIED = (dict, list, tuple, deque)
"""Containers whose values are copied too. Sets are not among them: they have no order."""
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(torch.dtype, torch.device, np.generic),
)

AttributeName = tuple[str, str]
"""Name of a module, and of an attribute of it."""


def attributes(model: nn.Module) -> dict[AttributeName, Any]:
    """Return copies of the plain attributes of all modules.

    These are numbers, strings, tensors, arrays, random generators, and nested containers of them.
    Objects of other types are left out.
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
    """Return the attributes that exist in both and have different values."""
    return {
        place for place in before.keys() & after.keys() if not equal(before[place], after[place])
    }


def loose_tensors(model: nn.Module) -> list[tuple[AttributeName, Tensor]]:
    """Return the tensors in attributes of modules that are neither buffers nor parameters."""
    return [
        (place, value)
        for place, attribute in _attributes(model)
        for value in _held_in([attribute])
        if isinstance(value, Tensor)
    ]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all buffers by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved_buffers(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of buffers whose bits have changed."""
    return {
        name
        for name, buffer in model.named_buffers()
        if name in before and not same_bits(buffer, before[name])
    }


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Run the block with `seed`, then restore buffers, attributes and random state."""
    with as_it_was(model), buffers_as_they_were(model), random_as_it_was(seed):
        yield


@contextmanager
def random_as_it_was(seed: int) -> Iterator[None]:
    """Seed torch, numpy and `random` in the block, then restore their states."""
    with random_state_kept(), torch.random.fork_rng():
        torch.manual_seed(seed)  # those of devices, too
        seed_all(seed)
        yield


def random_state() -> list[Any]:
    """Return the random states of torch, numpy and `random`, to be compared by `equal`."""
    now: list[Any] = _copied([torch.get_rng_state(), np.random.get_state(), random.getstate()])
    return now


@contextmanager
def buffers_as_they_were(model: nn.Module) -> Iterator[None]:
    """Restore all buffers after the block."""
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
    """Restore plain attributes after the block; remove attributes and buffers that it added."""
    held = [(module, _Held.of(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, before in held:
            before.give_back(module)


@contextmanager
def other_weights(model: nn.Module) -> Iterator[None]:
    """Change the values of trained parameters while the block runs, mostly keeping their signs.

    The change is large enough to alter branches that depend on them.
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
    """The plain attributes of one module: the objects, and copies of their contents."""

    values: dict[str, Any]
    contents: list[tuple[Any, Any]]
    """All mutable objects in these, each with a copy of its content."""
    buffers: dict[str, Tensor | None]
    """Its table of buffers. Their values are saved by `buffers_as_they_were`."""
    not_saved: set[str]
    """Names of its non-persistent buffers."""

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        own = vars(module).keys() - _OF_EVERY_MODULE
        values = {name: vars(module)[name] for name in own}
        contents = [(held, _content(held)) for held in _held_in(values.values())]
        return cls(
            values, contents, module._buffers.copy(), module._non_persistent_buffers_set.copy()
        )

    def give_back(self, module: nn.Module) -> None:
        for held, content in self.contents:
            _refill(held, content)
        for name in vars(module).keys() - _OF_EVERY_MODULE - self.values.keys():
            del vars(module)[name]
        vars(module).update(self.values)
        _refill(module._buffers, self.buffers)
        _refill(module._non_persistent_buffers_set, self.not_saved)


def _attributes(model: nn.Module) -> Iterator[tuple[AttributeName, Any]]:
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE and name != "training":
                yield (module_name, name), value


def _held_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield all objects in some values, nested ones too, that are not plain; each once."""
    seen: set[int] = set()
    for inner in chain.from_iterable(values_in(value, ATTRIBUTES) for value in values):
        if not isinstance(inner, _PLAIN) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner


_OTHER = object()
"""Marks a value that cannot be copied."""


def _copied(value: Any) -> Any:
    """Return a copy of plain values, tensors, arrays, lists, dicts and sets, else `_OTHER`."""
    return folded(value, _copied_leaf, _joined, into=_COPIED, again=lambda _: _OTHER)


def _copied_leaf(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return _OTHER
    if isinstance(value, _PLAIN):
        return value
    match value:
        case Tensor():
            return value.detach().clone()
        case np.ndarray():
            return value.copy()
        case set() | frozenset():
            return set(value)
    state = _state_of(value)
    return _OTHER if state is None else _copied(state)


def _joined(container: Any, parts: Sequence[Any]) -> Any:
    if isinstance(container, dict):
        return dict(zip(container, parts, strict=True))
    return list(parts)


def equal(one: Any, other: Any) -> bool:
    """Tell whether two copies made by `attributes` are bit-identical."""
    match one, other:
        case (Tensor(), Tensor()):
            return same_bits(one, other)
        case (np.ndarray(), np.ndarray()):
            is_alike = (one.shape, one.dtype) == (other.shape, other.dtype)
            return is_alike and one.tobytes() == other.tobytes()
        case (dict(), dict()):
            return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        case (list(), list()):
            return len(one) == len(other) and all(map(equal, one, other))
        case (float(), float()):
            return one == other or (one != one and other != other)
    return bool(type(one) is type(other) and one == other)


def _state_of(value: Any) -> Any:
    """Return the state of a random generator; None for anything else."""
    match value:
        case torch.Generator():
            return value.get_state()
        case np.random.Generator():
            return value.bit_generator.state
        case np.random.RandomState():
            return value.get_state()
        case random.Random():
            return value.getstate()
    return None


def _content(value: Any) -> Any:
    """Return a copy of the content of `value`, from which `_refill` restores it."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if isinstance(value, _CONTAINERS):
        return value.copy()
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.writeable else None
    return _state_of(value)


def _refill(value: Any, content: Any) -> None:
    match value:
        case Tensor() if content is not None and not same_bits(value, content):
            with torch.no_grad():
                value.copy_(content) if value.shape == content.shape else value.set_(content)
        case np.ndarray():
            if content is not None and not equal(value, content):
                value[...] = content
        case list() | deque():
            value.clear()
            value.extend(content)
        case dict() | set():
            value.clear()
            value.update(content)
        case _:
            _set_state(value, content)


def _set_state(value: Any, state: Any) -> None:
    """Restore the state of a random generator."""
    match value:
        case torch.Generator() | np.random.RandomState():
            value.set_state(state)
        case np.random.Generator():
            value.bit_generator.state = state
        case random.Random():
            value.setstate(state)
