"""Save and restore what running a network may change, and tell what it has changed.

The activation cache, `plan` and the lints run the network more often than training alone would,
and none of these extra passes may have an effect. The activation cache also finds modules that keep
state between calls here: they cannot be cached.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    return [(place, value) for place, value in loose_values(model) if isinstance(value, Tensor)]


def loose_values(model: nn.Module) -> Iterator[tuple[AttributeName, Any]]:
    """Yield what lies in attributes of modules, also in lists and the like, and is not plain."""
    for place, attribute in _attributes(model):
        for value in _held_in([attribute]):
            yield place, value


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
def preserved(
    model: nn.Module,
    *,
    buffers: bool = False,
    modes: bool = False,
    attributes: bool = False,
    random: int | None = None,
    weights: Iterable[nn.Parameter] = (),
) -> Iterator[None]:
    """Run the block, then restore the chosen parts of `model` and of the process.

    Args:
        model: The network.
        buffers: Restore the values of its buffers.
        modes: Restore `training` of its modules, and the holds of `freezing/apply.py` on it.
        attributes: Restore plain attributes of its modules, and remove attributes and buffers that
            were added. Modes are among them.
        random: Run the block with this seed, then restore torch, numpy and `random`.
        weights: Parameters whose values are restored.
    """
    with ExitStack() as restored:
        # undone in reverse: the table of buffers is restored after their values
        if attributes:
            _restore_attributes(model, restored)
        if modes:
            _restore_modes(model, restored)
        if buffers:
            _restore_buffers(model, restored)
        for parameter in weights:
            restored.callback(_copy_into, parameter, parameter.detach().clone())
        if random is not None:
            restored.enter_context(_seeded(random))
        yield


def _restore_attributes(model: nn.Module, restored: ExitStack) -> None:
    """Have plain attributes and tables of buffers restored when `restored` is closed."""
    for module in model.modules():
        # Callbacks hold the module itself: its place in the network may be taken by another one
        # meanwhile.
        restored.callback(_Held.of(module).give_back, module)


def _restore_modes(model: nn.Module, restored: ExitStack) -> None:
    """Have training modes, and holds on them, restored when `restored` is closed."""

    def give_back(module: nn.Module, names: dict[str, object]) -> None:
        # Written past `nn.Module.__setattr__`: a held module has a `train` of its own that refuses
        # changes.
        vars(module).pop("train", None)
        vars(module).update(names)

    for module in model.modules():
        names = vars(module).keys() & {"training", "train"}
        restored.callback(give_back, module, {name: vars(module)[name] for name in names})


def _restore_buffers(model: nn.Module, restored: ExitStack) -> None:
    """Have buffers and their values restored when `restored` is closed."""

    def give_back(module: nn.Module, name: str, buffer: Tensor, bits: Tensor) -> None:
        _copy_into(buffer, bits)
        # The object too, not only its bits: the optimizer, proofs and the cache refer to it.
        module._buffers[name] = buffer

    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                restored.callback(give_back, module, name, buffer, buffer.clone())


def _copy_into(tensor: Tensor, bits: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(bits)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all generators for the block, then restore their states."""
    with random_state_kept(), torch.random.fork_rng():
        torch.manual_seed(seed)  # those of devices, too
        seed_all(seed)
        yield


def random_state() -> list[Any]:
    """Return the random states of torch, numpy and `random`, to be compared by `equal`."""
    now: list[Any] = _copied([torch.get_rng_state(), np.random.get_state(), random.getstate()])
    return now


@dataclass(frozen=True, slots=True)
class _Held:
    """The plain attributes of one module: the objects, and copies of their contents."""

    values: dict[str, Any]
    contents: list[tuple[Any, Any]]
    """All mutable objects in these, each with a copy of its content."""
    buffers: dict[str, Tensor | None]
    """Its table of buffers. Their values are restored apart."""
    not_saved: set[str]
    """Names of its non-persistent buffers."""

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        """Return the attributes that a module has now."""
        own = vars(module).keys() - _OF_EVERY_MODULE
        values = {name: vars(module)[name] for name in own}
        contents = [(held, _content(held)) for held in _held_in(values.values())]
        return cls(
            values, contents, module._buffers.copy(), module._non_persistent_buffers_set.copy()
        )

    def give_back(self, module: nn.Module) -> None:
        """Restore these attributes, and delete those that were added since."""
        # The objects keep their identity: other modules may refer to the same list or tensor.
        for held, content in self.contents:
            _refill(held, content)
        for name in vars(module).keys() - _OF_EVERY_MODULE - self.values.keys():
            del vars(module)[name]
        vars(module).update(self.values)
        _refill(module._buffers, self.buffers)
        _refill(module._non_persistent_buffers_set, self.not_saved)


def _attributes(model: nn.Module) -> Iterator[tuple[AttributeName, Any]]:
    """Yield the plain attributes of all modules, except `training`."""
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
            # By bytes: NaN differs from itself as a value.
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
    """Restore the content of a mutable object in place."""
    match value:
        case Tensor() if content is not None and not same_bits(value, content):
            with torch.no_grad():
                # In place where possible, since other objects may share the storage.
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
