"""Walk the output of a module: list its tensors, replace them, compare the rest."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an output, in a fixed order.

    Tuples, lists, mappings (also the outputs of `transformers`) and dataclasses are looked into.
    """
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in _parts(value) for tensor in tensors_in(part)]


def rebuilt(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of an output with every tensor replaced, in the order of `tensors_in`.

    Raises:
        Exception: anything that the constructor of a user's own type raises.
    """
    if isinstance(value, Tensor):
        return replace(value)
    match value:
        case dict() | UserDict():
            # a copy keeps attributes besides the items, such as a default factory
            copied = copy.copy(value)
            for key, item in value.items():
                copied[key] = rebuilt(item, replace)
            return copied
        case Mapping():
            return type(value)({key: rebuilt(item, replace) for key, item in value.items()})  # type: ignore[call-arg]
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*(rebuilt(item, replace) for item in value))
        case tuple() | list():
            return type(value)([rebuilt(item, replace) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value) if item.init]
        changes = {name: rebuilt(getattr(value, name), replace) for name in names}
        return dataclasses.replace(value, **changes)
    return value


def apart_from_tensors(value: Any) -> Any:
    """Return an output with tensors replaced by their type, so that the rest can be compared."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, Mapping):
        return type(value), [(key, apart_from_tensors(item)) for key, item in value.items()]
    parts = _parts(value)
    return (type(value), [apart_from_tensors(part) for part in parts]) if parts else value


def is_opaque(value: Any) -> bool:
    """Tell whether an output contains an object of unknown type, which may hide tensors."""
    if value is None or isinstance(value, Tensor | bool | int | float | str):
        return False
    parts = _parts(value)
    if not parts and not isinstance(value, Mapping | tuple | list):
        return not (dataclasses.is_dataclass(value) and not isinstance(value, type))
    return any(is_opaque(part) for part in parts)


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, item.name) for item in dataclasses.fields(value) if item.init]
    return ()
