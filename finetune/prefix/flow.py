"""What passes between the frozen calls and the code around them, and how values come to them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.prefix.faults import Inputs, Place
from finetune.prefix.outputs import tensors_in
from finetune.prefix.state import buffers_as_they_were, loose_tensors
from finetune.prefix.trace import Call, Operation, Operations, storage_of, watched

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


@dataclass(frozen=True, slots=True)
class Flow:
    """What passes between the chosen calls and the code around them."""

    needed: dict[Place, list[bool]]
    """For each output of a chosen call, whether it is needed.

    It is if through operations outside the chosen calls it reaches a tensor that depends on a
    trained parameter, the network's own output, or Python. Being read alone is not enough: what
    comes of it may only feed another frozen call."""
    read: set[str]
    """Input columns that are read outside."""
    leaking: set[Place]
    """Calls of which the network also reads what they do not return."""
    route: Route
    """How values come to the chosen calls."""


def flow_around(model: nn.Module, batch: Inputs, chosen: Collection[Place]) -> Flow:
    """Run the network, and follow the values that are in no chosen call."""
    columns = {name: tensor.clone() for name, tensor in batch.items()}
    known = _known_tensors(model, columns)
    operations = Operations(tensor for _, tensor in known)
    given: dict[Place, Call] = {}
    arguments: dict[int, list[Any]] = {}

    def entered(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments[id(call)] = [*args, kwargs]
        if (call.module, call.visit) in chosen:
            operations.close((call.module, call.visit), arguments[id(call)])

    def left(call: Call) -> None:
        place = (call.module, call.visit)
        if place in chosen:
            operations.reopen(call.output)
            given[place] = call
        elif not call.children and not operations.is_closed:
            # Code below Python (compiled or custom functions) shows no operation of its own.
            operations.note(call.module, arguments[id(call)], call.output)

    seeded = torch.random.fork_rng()
    with buffers_as_they_were(model), seeded, watched(model, entered, left) as roots, operations:
        torch.manual_seed(1)
        model(**columns)
    reached = {storage_of(tensor) for root in roots for tensor in root.tensors}
    read = set(reached)
    for operation in reversed(operations.found):
        read |= operation.reads
        if operation.trains or operation.escapes or operation.writes & reached:
            reached |= operation.reads
    return Flow(
        needed={
            place: [storage_of(tensor) in reached for tensor in call.tensors]
            for place, call in given.items()
        },
        read={name for name, tensor in columns.items() if storage_of(tensor) in read},
        leaking=operations.leaking,
        route=_route_to(
            {place: arguments[id(call)] for place, call in given.items()},
            operations.found,
            [*known, *(origin for call in given.values() for origin in _origins_in(call))],
        ),
    )


def _known_tensors(model: nn.Module, columns: Inputs) -> list[tuple[Origin, Tensor]]:
    """Return the tensors that are there before a forward pass begins, and what they are."""
    own = (*model.named_parameters(), *model.named_buffers())
    loose = loose_tensors(model)
    return [
        *((("tensor", name), tensor) for name, tensor in own),
        *((("attribute", *place), tensor) for place, tensor in loose),
        *((("column", name), tensor) for name, tensor in columns.items()),
    ]


def _origins_in(call: Call) -> Iterator[tuple[Origin, Tensor]]:
    """Yield the tensors that a call has returned."""
    for number, tensor in enumerate(call.tensors):
        yield ("call", call.module, str(call.visit), str(number)), tensor


def _route_to(
    calls: Mapping[tuple[str, int], Sequence[Any]],
    operations: Sequence[Operation],
    origins: Sequence[tuple[Origin, Tensor]],
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
            ends = (value.start, value.stop, value.step)
            return ["slice", *(_plain(end, origin_of) for end in ends)]
        case Mapping():
            return {str(key): _plain(item, origin_of) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, origin_of) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
