"""How values come to the frozen calls: what the code around those does to them on the way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.prefix.outputs import tensors_in
from finetune.prefix.trace import Operation, storage_of

Origin = tuple[str, ...]
"""Where a tensor comes from: `column x`, `tensor pos_embed`, `attribute body table`, `call a 0`."""


@dataclass(frozen=True, slots=True)
class Route:
    """What leads to the frozen calls, as plain data.

    Two networks may share every module of a prefix, and give each of them other values: by a
    position embedding that is added outside any module, a factor in the code, another wiring.
    """

    steps: tuple[Any, ...] = ()
    """The operations outside the frozen calls whose results reach one of them, and its arguments:
    names, and arguments with every tensor replaced by where it comes from."""
    origins: frozenset[Origin] = frozenset()
    """Where the values come from that these operations and calls take."""

    def names(self, kind: str) -> list[Origin]:
        """Return the origins of one kind, in order, without it."""
        return sorted(origin[1:] for origin in self.origins if origin[0] == kind)


def route_to(
    calls: Mapping[tuple[str, int], Sequence[Any]],
    operations: Sequence[Operation],
    origins: Iterable[tuple[Origin, Tensor]],
) -> Route:
    """Go back from the arguments of `calls` to where they come from.

    Args:
        calls: Arguments of the frozen calls, by module and visit.
        operations: What ran outside them, in order.
        origins: Tensors that no operation made. All tensors must still be alive.
    """
    wanted = {storage_of(tensor) for taken in calls.values() for tensor in tensors_in(list(taken))}
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation.writes & wanted:
            wanted |= operation.reads
            kept.insert(0, operation)
    known = {id(tensor): origin for origin, tensor in origins}
    by_storage = {storage_of(tensor): origin for origin, tensor in origins}
    for number, operation in enumerate(kept):
        for place, tensor in enumerate(tensors_in(operation.result)):
            known.setdefault(id(tensor), ("step", str(number), str(place)))

    def origin_of(tensor: Tensor) -> Origin:
        origin = known.get(id(tensor)) or by_storage.get(storage_of(tensor))
        return origin or ("other", str(tuple(tensor.shape)), str(tensor.dtype))

    steps = [(operation.name, _plain(operation.arguments, origin_of)) for operation in kept]
    steps += [(place[0], _plain(taken, origin_of)) for place, taken in calls.items()]
    return Route(tuple(steps), frozenset(by_storage[one] for one in wanted & by_storage.keys()))


def _plain(value: Any, origin_of: Callable[[Tensor], Origin]) -> Any:
    """Return arguments as something that JSON can hold."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            return origin_of(value)
        case torch.dtype() | torch.device() | torch.layout() | complex():
            return str(value)
        case slice():
            return [
                "slice",
                *(_plain(at, origin_of) for at in (value.start, value.stop, value.step)),
            ]
        case Mapping():
            return {str(key): _plain(item, origin_of) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, origin_of) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
