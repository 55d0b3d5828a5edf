"""One forward pass watched around chosen calls: what comes into them, and by which operations."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from finetune.prefix.faults import Inputs, Place
from finetune.prefix.outputs import tensors_in
from finetune.prefix.state import (
    AttributeName,
    attributes,
    buffers,
    buffers_as_they_were,
    loose_tensors,
    moved_attributes,
    moved_buffers,
    random_as_it_was,
)
from finetune.prefix.trace import Call, Operation, Operations, storage_of, watched

Held = str | AttributeName
"""A tensor that a network holds: name of a parameter or buffer, or module and attribute."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """How a chosen call began."""

    arguments: Sequence[Any]
    num_operations: int
    """Operations that had run outside the chosen calls by then."""


@dataclass(slots=True)
class Around:
    """What ran outside the chosen calls of a pass, and what those took and gave."""

    columns: dict[str, Tensor]
    held: list[tuple[Held, Tensor]]
    """The tensors of the network."""
    operations: Operations
    entrances: dict[Place, Entrance] = field(default_factory=dict)
    given: dict[Place, Call] = field(default_factory=dict)
    """The chosen calls, when they were over."""
    roots: list[Call] = field(default_factory=list)
    moved: set[Held] = field(default_factory=set)
    """Tensors of the network that have other values than before the pass."""

    def leading_to(self, place: Place) -> tuple[set[int], list[Operation]]:
        """Return what leads to a chosen call: storages, and the operations, in order."""
        entrance = self.entrances[place]
        return _leading_to(
            {
                storage_of(tensor)
                for tensor in tensors_in(list(entrance.arguments))
                if not tensor.requires_grad
            },
            self.operations.found[: entrance.num_operations],
        )

    def moving_into_python(self) -> list[tuple[int, set[Held]]]:
        """Return what has moved of what Python comes to know as a number.

        With it comes how many operations had run by then.
        """
        if not self.moved:
            return []
        found = self.operations.found
        return [
            (number, self.names_of(_leading_to(set(one.reads), found[:number])[0]) & self.moved)
            for number, one in enumerate(found)
            if one.escapes
        ]

    def names_of(self, storages: Collection[int]) -> set[Held]:
        """Return the frozen tensors of the network that lie in some storages."""
        return {
            name
            for name, tensor in self.held
            if not tensor.requires_grad and storage_of(tensor) in storages
        }


def watch_around(model: nn.Module, inputs: Inputs, chosen: Collection[Place]) -> Around:
    """Run the network, and note what is outside the chosen calls.

    Buffers and the random state are as before afterwards, plain attributes are not.
    """
    # the network may change its inputs in place
    columns = {name: tensor.clone() for name, tensor in inputs.items()}
    own = (*model.named_parameters(), *model.named_buffers())
    held: list[tuple[Held, Tensor]] = [*own, *loose_tensors(model)]
    operations = Operations([*(tensor for _, tensor in held), *columns.values()])
    seen = Around(columns, held, operations)
    arguments: dict[int, list[Any]] = {}

    def entered(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = (call.module, call.visit)
        arguments[id(call)] = [*args, *kwargs.values()]
        if place in chosen:
            seen.entrances[place] = Entrance(arguments[id(call)], len(operations.found))
            operations.close(place, arguments[id(call)])

    def left(call: Call) -> None:
        place = (call.module, call.visit)
        if place in chosen:
            operations.reopen(call.output)
            seen.given[place] = call
        elif not call.children and not operations.is_closed:
            # Code below Python (compiled or custom functions) shows no operation of its own.
            operations.note(call.module, arguments[id(call)], call.output)

    before, plain = buffers(model), attributes(model)
    with buffers_as_they_were(model), random_as_it_was(seed=1):
        with watched(model, entered, left) as seen.roots, operations:
            model(**columns)
        seen.moved |= moved_buffers(model, before)
    seen.moved |= moved_attributes(plain, attributes(model))
    return seen


def _leading_to(
    storages: set[int], operations: Sequence[Operation]
) -> tuple[set[int], list[Operation]]:
    """Go back from storages; what trains is left out.

    It may lend its shape. That its values do not count is shown by a trial with others.
    """
    wanted, kept = set(storages), list[Operation]()
    for operation in reversed(operations):
        if not operation.trains and operation.writes & wanted:
            wanted |= operation.reads
            kept.append(operation)
    return wanted, kept[::-1]
