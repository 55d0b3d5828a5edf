"""Walk nested Python values: list the values inside, or make another value of the same shape.

Containers are what a walk goes into; everything else is a leaf. Which types are containers depends
on the purpose, so each walk names one of the sets below.
"""

import copy
import dataclasses
from collections import UserDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

T = TypeVar("T")


@runtime_checkable
class DataclassObject(Protocol):
    """An object of a dataclass. The class itself is one too for `isinstance`, but has no parts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Kinds = tuple[type, ...]
OUTPUTS: Kinds = (Mapping, tuple, list, DataclassObject)
"""Containers in arguments and outputs of modules; outputs of `transformers` are among them."""
ATTRIBUTES: Kinds = (dict, list, tuple, set, frozenset, deque)
"""Containers in attributes of modules. Objects that users define are left alone."""
DATA: Kinds = (Mapping, list, tuple, deque)
"""Containers of plain data, such as settings."""
_NO_PARTS = (Tensor, str, bytes, int, float, type(None))
"""The most frequent leaves; looked at first, since a walk runs at every frozen call of a step."""


def parts_of(value: Any, into: Kinds = OUTPUTS) -> Sequence[Any] | None:
    """Return the values directly inside a container, in a fixed order; None for a leaf."""
    if isinstance(value, _NO_PARTS) or not isinstance(value, into):
        return None
    match value:
        case Mapping():
            return list(value.values())
        case list() | tuple():
            return value
        case set() | frozenset() | deque():
            return list(value)
    return None if isinstance(value, type) else [getattr(value, name) for name in _fields(value)]


def values_in(value: Any, into: Kinds = OUTPUTS) -> Iterator[Any]:
    """Yield a value and all values inside it, containers before their parts.

    A container that occurs again, also inside itself, is yielded again but not entered again.
    """
    yield from _values_in(value, into, set())


def _values_in(value: Any, into: Kinds, entered: set[int]) -> Iterator[Any]:
    """Yield a value and all values inside it; `entered` grows by the containers."""
    yield value
    parts = parts_of(value, into)
    # By identity, since values need not be comparable; and a list may contain itself.
    if parts is None or id(value) in entered:
        return
    entered.add(id(value))
    for part in parts:
        yield from _values_in(part, into, entered)


def folded(
    value: Any,
    leaf: Callable[[Any], T],
    join: Callable[[Any, Sequence[T]], T],
    *,
    into: Kinds = OUTPUTS,
    again: Callable[[Any], T] | None = None,
) -> T:
    """Compute something of a nested value from the leaves up.

    Args:
        value: Anything.
        leaf: Gives the result of a leaf.
        join: Gives the result of a container from those of its parts, in the order of `parts_of`.
        into: Types of containers.
        again: Gives the result of a container that is inside itself; needed where one may be.
    """
    return _folded(value, leaf, join, into, again, set())


def _folded(
    value: Any,
    leaf: Callable[[Any], T],
    join: Callable[[Any, Sequence[T]], T],
    into: Kinds,
    again: Callable[[Any], T] | None,
    around: set[int],
) -> T:
    """Return the result of `folded` for a value inside the containers `around`.

    Not a closure that calls itself: such a cycle would keep all tensors of a pass in memory until
    the next garbage collection.
    """
    if again is not None and id(value) in around:
        return again(value)
    parts = parts_of(value, into)
    if parts is None:
        return leaf(value)
    around.add(id(value))
    done = [_folded(part, leaf, join, into, again, around) for part in parts]
    # A container that occurs twice beside itself is no cycle.
    around.discard(id(value))
    return join(value, done)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an output, in a fixed order; one that occurs twice comes twice."""
    found: list[Tensor] = []
    folded(value, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, _nothing)
    return found


def rebuilt(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of an output with every tensor replaced, in the order of `tensors_in`.

    Raises:
        Exception: anything that the constructor of a user's own type raises.
    """
    return folded(value, lambda leaf: replace(leaf) if isinstance(leaf, Tensor) else leaf, _remade)


def apart_from_tensors(value: Any) -> Any:
    """Return an output with tensors replaced by their type, so that the rest can be compared."""
    return folded(value, lambda leaf: Tensor if isinstance(leaf, Tensor) else leaf, _described)


def is_opaque(value: Any) -> bool:
    """Tell whether an output contains an object of unknown type, which may hide tensors."""
    known = (Tensor, bool, int, float, str, type(None))
    return any(
        not isinstance(inner, known) and parts_of(inner) is None for inner in values_in(value)
    )


def _nothing(container: Any, parts: Sequence[None]) -> None:
    return None


def _described(container: Any, parts: Sequence[Any]) -> Any:
    """Return type and parts of a container, and the keys of a mapping."""
    if isinstance(container, Mapping):
        return type(container), list(zip(container, parts, strict=True))
    return (type(container), list(parts)) if parts else container


def _remade(container: Any, parts: Sequence[Any]) -> Any:
    """Return a container of the same type with other parts."""
    match container:
        case dict() | UserDict():
            # a copy keeps attributes besides the items, such as a default factory
            copied = copy.copy(container)
            for key, part in zip(container, parts, strict=True):
                copied[key] = part
            return copied
        case Mapping():
            return type(container)(dict(zip(container, parts, strict=True)))  # type: ignore[call-arg]
        # A named tuple takes its parts as arguments, not as one sequence.
        case tuple() if hasattr(container, "_fields"):
            return type(container)(*parts)
        case tuple() | list():
            return type(container)(parts)
    return dataclasses.replace(container, **dict(zip(_fields(container), parts, strict=True)))


def _fields(record: Any) -> list[str]:
    """Return the names of the fields that the constructor of a dataclass takes."""
    return [field.name for field in dataclasses.fields(record) if field.init]
