"""Follow values between the chosen calls and the code around them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from finetune.activations.find.checks import Inputs, Place
from finetune.activations.find.surroundings import Around, Held, watch_around
from finetune.activations.find.trace import storage_of


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
    """Run the network and follow the values outside the chosen calls."""
    seen = watch_around(model, batch, chosen)
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
