"""Follow values between the chosen calls and the code around them.

The network runs once with the chosen calls as black boxes: their arguments and outputs are noted,
and all operations outside them. Walking these backwards tells which outputs of the calls are
needed, and which tensors of the network enter a call from outside.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from finetune.activations.find.checks import Inputs
from finetune.activations.find.operations import Operation, Operations
from finetune.module_calls import Call, Place, storage_of, watched
from finetune.preserved import (
    AttributeName,
    attributes,
    buffers,
    loose_tensors,
    moved_attributes,
    moved_buffers,
    preserved,
)
from finetune.structure import tensors_in

Held = str | AttributeName
"""A tensor that a network holds: name of a parameter or buffer, or module and attribute."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """State at the beginning of a chosen call."""

    arguments: Sequence[Any]
    num_operations: int
    """Number of operations outside chosen calls that ran before it."""


@dataclass(slots=True)
class Around:
    """Operations outside the chosen calls of a pass, and arguments and outputs of these calls."""

    columns: dict[str, Tensor]
    held: list[tuple[Held, Tensor]]
    """Tensors of the network, by name."""
    operations: Operations
    entrances: dict[Place, Entrance] = field(default_factory=dict)
    given: dict[Place, Call] = field(default_factory=dict)
    """The chosen calls, with their outputs."""
    roots: list[Call] = field(default_factory=list)
    moved: set[Held] = field(default_factory=set)
    """Tensors of the network that the pass changed."""

    def leading_to(self, place: Place) -> tuple[set[int], list[Operation]]:
        """Return what the arguments of a chosen call depend on.

        These are the storages, and the operations between them in the order in which they ran.
        """
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
        """Return which changed tensors Python reads as numbers, by `item()` for example.

        One entry for each such reading: the number of operations that ran before it, and the names.
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
        """Return the names of the network's frozen tensors in these storages."""
        return {
            name
            for name, tensor in self.held
            if not tensor.requires_grad and storage_of(tensor) in storages
        }


def watch_around(model: nn.Module, inputs: Inputs, chosen: Collection[Place]) -> Around:
    """Run the network and record what happens outside the chosen calls.

    Buffers and random state are restored afterwards, plain attributes are not.
    """
    # Copies, since the network may change its inputs in place.
    columns = {name: tensor.clone() for name, tensor in inputs.items()}
    # By name, since a store's key needs the names of the tensors that enter calls.
    own = (*model.named_parameters(), *model.named_buffers())
    held: list[tuple[Held, Tensor]] = [*own, *loose_tensors(model)]
    operations = Operations([*(tensor for _, tensor in held), *columns.values()])
    seen = Around(columns, held, operations)
    arguments: dict[int, list[Any]] = {}

    def entered(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments[id(call)] = [*args, *kwargs.values()]
        if call.place in chosen:
            seen.entrances[call.place] = Entrance(arguments[id(call)], len(operations.found))
            operations.close(call.place, arguments[id(call)])

    def left(call: Call) -> None:
        if call.place in chosen:
            operations.reopen(call.output)
            seen.given[call.place] = call
        # Only innermost calls: the work of the others is seen in their parts.
        elif not call.children and not operations.is_closed:
            # Compiled and custom functions show no operation to torch, so the module call counts as
            # one operation.
            operations.note(call.module, arguments[id(call)], call.output)

    before, plain = buffers(model), attributes(model)
    with preserved(model, buffers=True, random=1):
        with watched(model, entered, left) as seen.roots, operations:
            model(**columns)
        seen.moved |= moved_buffers(model, before)
    seen.moved |= moved_attributes(plain, attributes(model))
    return seen


def _leading_to(
    storages: set[int], operations: Sequence[Operation]
) -> tuple[set[int], list[Operation]]:
    """Walk operations backwards from storages; skip those that depend on trained parameters.

    Such operations may contribute a shape only: `checks.py` has shown that changing trained values
    has no effect on the call.
    """
    wanted, kept = set(storages), list[Operation]()
    for operation in reversed(operations):
        if not operation.trains and operation.writes & wanted:
            wanted |= operation.reads
            kept.append(operation)
    return wanted, kept[::-1]


@dataclass(frozen=True, slots=True)
class Flow:
    """What passes between the chosen calls and the code around them."""

    needed: Mapping[Place, Sequence[bool]]
    """For each output of a chosen call, whether it is needed.

    It is needed if it reaches, through operations outside the chosen calls, a tensor that depends
    on a trained parameter, the network's own output, or Python. Being read is not enough: the
    result may only feed another frozen call."""
    read: frozenset[str]
    """Input columns that are read outside the chosen calls."""
    added: frozenset[Held]
    """Frozen tensors outside the chosen calls that enter one, such as a position embedding."""
    faults: Mapping[Place, str]
    """Chosen calls that cannot be answered after all, and why."""


def follow_values(model: nn.Module, batch: Inputs, chosen: Collection[Place]) -> Flow:
    """Run the network; return which outputs of the chosen calls are needed, and what enters."""
    seen = watch_around(model, batch, chosen)
    # What the network returns counts as needed: a loss may be all that is made of it.
    reached = {storage_of(tensor) for root in seen.roots for tensor in root.tensors}
    read = set(reached)
    for operation in reversed(seen.operations.found):
        read |= operation.reads
        # Backwards: if an operation's result is needed, its arguments are needed.
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


def _what_is_added(seen: Around) -> tuple[frozenset[Held], dict[Place, str]]:
    """Return the frozen tensors that enter chosen calls, and the calls that cannot be cached.

    A call cannot be cached if a tensor that changes in every pass enters it, or the output of
    another such call.
    """
    added: set[Held] = set()
    spoilt: dict[Place, str] = {}
    known_to_python = seen.moving_into_python()
    for place, entrance in seen.entrances.items():
        wanted, _ = seen.leading_to(place)
        names = seen.names_of(wanted)
        added |= names
        before = [
            fault
            for earlier, fault in spoilt.items()
            if any(storage_of(tensor) in wanted for tensor in seen.given[earlier].tensors)
        ]
        moving = (names & seen.moved).union(
            *(known for number, known in known_to_python if number < entrance.num_operations)
        )
        if moving:
            name = min(map(_in_words, moving))
            spoilt[place] = f"depends on {name!r} outside of it, which moves"
        elif before:
            spoilt[place] = before[0]
    return frozenset(added), spoilt


def _in_words(held: Held) -> str:
    return held if isinstance(held, str) else ".".join(filter(None, held))
