"""What passes between the chosen calls and the code around them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finetune.prefix.faults import Inputs, Place
from finetune.prefix.outputs import tensors_in
from finetune.prefix.state import (
    AttributeName,
    attributes,
    buffers,
    loose_tensors,
    moved_attributes,
    same_bits,
    undisturbed,
)
from finetune.prefix.trace import Call, Operation, Operations, storage_of, watched

Held = str | AttributeName
"""A tensor that a network holds: name of a parameter or buffer, or module and attribute."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What passes between the chosen calls and the code around them."""

    needed: Mapping[Place, Sequence[bool]]
    """For each output of a chosen call, whether it is needed.

    It is if through operations outside the chosen calls it reaches a tensor that depends on a
    trained parameter, the network's own output, or Python. Being read alone is not enough: what
    comes of it may only feed another frozen call."""
    read: frozenset[str]
    """Input columns that are read outside."""
    added: frozenset[Held]
    """Frozen tensors outside the chosen calls that reach one of them: a position embedding, say."""
    faults: Mapping[Place, str]
    """Chosen calls that cannot be answered, as they are not all that passes, and why."""


@dataclass(slots=True)
class _Pass:
    """One forward pass: operations outside the chosen calls, and what those took and gave."""

    operations: Operations
    taken: dict[Place, list[Any]]
    given: dict[Place, Call]
    roots: list[Call]
    columns: dict[str, Tensor]
    held: list[tuple[Held, Tensor]]
    moved: set[Held]
    """Tensors outside that have other values than before."""


def follow_values(model: nn.Module, batch: Inputs, chosen: Collection[Place]) -> Flow:
    """Run the network, and follow the values that are in no chosen call."""
    seen = _watch(model, batch, chosen)
    reached = {storage_of(tensor) for root in seen.roots for tensor in root.tensors}
    read = set(reached)
    for operation in reversed(seen.operations.found):
        read |= operation.reads
        if operation.trains or operation.escapes or operation.writes & reached:
            reached |= operation.reads
    added, faults = _what_is_added(seen)
    leaking = dict.fromkeys(seen.operations.leaking, "hands on values besides what it returns")
    return Flow(
        needed={
            place: [storage_of(tensor) in reached for tensor in call.tensors]
            for place, call in seen.given.items()
        },
        read=frozenset(name for name, tensor in seen.columns.items() if storage_of(tensor) in read),
        added=added,
        faults=faults | leaking,
    )


def _watch(model: nn.Module, batch: Inputs, chosen: Collection[Place]) -> _Pass:
    columns = {name: tensor.clone() for name, tensor in batch.items()}
    held = _held_tensors(model)
    operations = Operations([*(tensor for _, tensor in held), *columns.values()])
    taken: dict[Place, list[Any]] = {}
    given: dict[Place, Call] = {}
    arguments: dict[int, list[Any]] = {}

    def entered(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = (call.module, call.visit)
        arguments[id(call)] = [*args, *kwargs.values()]
        if place in chosen:
            taken[place] = arguments[id(call)]
            operations.close(place, arguments[id(call)])

    def left(call: Call) -> None:
        place = (call.module, call.visit)
        if place in chosen:
            operations.reopen(call.output)
            given[place] = call
        elif not call.children and not operations.is_closed:
            # Code below Python (compiled or custom functions) shows no operation of its own.
            operations.note(call.module, arguments[id(call)], call.output)

    before, plain = buffers(model), attributes(model)
    with undisturbed(model, seed=1), watched(model, entered, left) as roots, operations:
        model(**columns)
        moved: set[Held] = {
            name
            for name, now in model.named_buffers()
            if name in before and not same_bits(now, before[name])
        }
        moved |= moved_attributes(plain, attributes(model))
    return _Pass(operations, taken, given, roots, columns, held, moved)


def _held_tensors(model: nn.Module) -> list[tuple[Held, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers(), *loose_tensors(model)]


def _what_is_added(seen: _Pass) -> tuple[frozenset[Held], dict[Place, str]]:
    """Return which frozen tensors reach chosen calls from outside, and which calls that spoils.

    A tensor that every pass moves has another value at the next visit of a sample. What follows
    on a call that is spoilt is spoilt with it.
    """
    added: set[Held] = set()
    spoilt: dict[Place, str] = {}
    held = [(name, tensor) for name, tensor in seen.held if not tensor.requires_grad]
    for place, taken in seen.taken.items():
        wanted = _leading_to(tensors_in(taken), seen.operations.found)
        names = {name for name, tensor in held if storage_of(tensor) in wanted}
        added |= names
        before = [
            fault
            for earlier, fault in spoilt.items()
            if any(storage_of(tensor) in wanted for tensor in seen.given[earlier].tensors)
        ]
        moving = sorted(map(_in_words, names & seen.moved))
        if moving:
            spoilt[place] = f"depends on {moving[0]!r} outside of it, which moves"
        elif before:
            spoilt[place] = before[0]
    return frozenset(added), spoilt


def _in_words(held: Held) -> str:
    return held if isinstance(held, str) else ".".join(filter(None, held))


def _leading_to(tensors: Sequence[Tensor], operations: Sequence[Operation]) -> set[int]:
    """Return the storages whose values come into `tensors`, those that train left out.

    Such may lend their shape. That their values do not count is shown by a trial with others.
    """
    wanted = {storage_of(tensor) for tensor in tensors if not tensor.requires_grad}
    for operation in reversed(operations):
        if not operation.trains and operation.writes & wanted:
            wanted |= operation.reads
    return wanted
