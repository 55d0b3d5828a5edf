"""Which calls of a forward pass are frozen, and which of their outputs the rest needs, by trial.

Autograd itself knows what is frozen: a tensor that does not require a gradient depends on no
trained parameter. A call is taken into the prefix if all it returns is like that, and if trials
show that it gives each sample the same bits whatever the seed and the rest of the batch, and that
it moves no buffer. Nothing is assumed about architectures.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.prefix.layout import RowSpec
from finetune.prefix.outputs import rebuilt
from finetune.prefix.trace import (
    Call,
    Operations,
    same_bits,
    storage_of,
    undisturbed,
    watched,
)

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor that a frozen call returns."""

    shape: tuple[int, ...]
    """Shape in the trial, batch first."""
    dtype: torch.dtype
    per_sample: bool
    """Whether its first axis is the batch; else it is one constant."""
    ragged: bool
    """Whether its second axis is the sequence, which differs between batches."""
    needed: bool
    """Whether anything outside the frozen calls makes use of its values."""


@dataclass(frozen=True, slots=True)
class FrozenCall:
    """A call that can be answered from the store: it is frozen, and its caller is not."""

    module: str
    visit: int
    """How many calls of the same module came before, those inside frozen calls not counted."""
    output: Any
    """What it returned in the trial: the shape of the answer."""
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Border:
    """Where the frozen prefix of a network ends."""

    calls: tuple[FrozenCall, ...]
    unread: frozenset[str]
    """Input columns that nothing outside the frozen calls reads."""
    reasons: tuple[str, ...]
    """Why frozen calls were left out, a line each, naming the module and the remedy."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules in the prefix."""
        return tuple(dict.fromkeys(call.module for call in self.calls))

    @property
    def stored(self) -> dict[str, Leaf]:
        """What a store must hold of every sample, by name."""
        return {
            leaf_name(call, number): leaf
            for call in self.calls
            for number, leaf in enumerate(call.leaves)
            if leaf.needed and leaf.per_sample
        }

    @property
    def specs(self) -> dict[str, RowSpec]:
        """What a store must be laid out for, by name."""
        return {
            name: RowSpec(leaf.shape[1:], str(leaf.dtype).removeprefix("torch."), leaf.ragged)
            for name, leaf in self.stored.items()
        }

    def encloses(self, other: "Border") -> bool:
        """Tell whether every call of `other` is made within the calls of this one."""
        return all(
            any(inner == outer or inner.startswith(f"{outer}.") for outer in self.modules)
            for inner in other.modules
        )


def leaf_name(call: FrozenCall, number: int) -> str:
    """Name one tensor that a frozen call returns."""
    return f"{call.module}#{call.visit}.{number}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """The calls of one forward pass, by their place in it."""

    calls: dict[tuple[str, int], Call]
    roots: list[Call]
    moved: frozenset[str]
    """Modules one of whose buffers has moved."""


@dataclass(slots=True)
class _Findings:
    """What trials have shown against a call, by its place."""

    faults: dict[tuple[str, int], str] = field(default_factory=dict)
    constants: dict[tuple[str, int], list[bool]] = field(default_factory=dict)


def probe(
    model: nn.Module, batch: Inputs, mixed: Inputs, shared: Sequence[tuple[int, int]]
) -> tuple[Border, float]:
    """Find the frozen prefix of `model` in its present mask and modes.

    Four forward passes are made; buffers and random state are as before afterwards.

    Args:
        model: Called with the batches by keyword.
        batch: Some samples `(B, ...)`.
        mixed: Another batch of as many, in which some of the samples come again among others.
        shared: Where: pairs of rows in `batch` and in `mixed` that hold one sample.

    Returns:
        The border, and the seconds that the prefix took for one sample.
    """
    first, second = _try(model, batch, seed=1), _try(model, batch, seed=2)
    other = _try(model, mixed, seed=1)
    findings = _Findings()
    if not first.calls.keys() == second.calls.keys() == other.calls.keys():
        reason = "control flow depends on the data: two batches make different calls"
        return Border((), frozenset(), (reason,)), 0.0
    for place, call in first.calls.items():
        _judge(place, call, second, other, shared, findings)
    chosen = _maximal(first.roots, findings, set())
    seconds = sum(second.calls[call.module, call.visit].seconds for call in chosen)
    border = _border(model, batch, chosen, findings, first)
    return border, seconds / len(next(iter(batch.values())))


def _try(model: nn.Module, inputs: Inputs, *, seed: int) -> _Trial:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with undisturbed(model, seed), watched(model) as roots:
        model(**inputs)
        moved = frozenset(
            name.rpartition(".")[0]
            for name, buffer in model.named_buffers()
            if not same_bits(buffer, before[name])
        )
    calls = {(call.module, call.visit): call for root in roots for call in root.walk()}
    return _Trial(calls, roots, moved)


def _judge(
    place: tuple[str, int],
    call: Call,
    second: _Trial,
    other: _Trial,
    shared: Sequence[tuple[int, int]],
    findings: _Findings,
) -> None:
    """Note what speaks against taking a frozen call into the prefix."""
    if not call.is_frozen:
        return
    name = call.module
    again, mixed = second.calls[place].tensors, other.calls[place].tensors
    if any(moved == name or moved.startswith(f"{name}.") for moved in second.moved):
        findings.faults[place] = "moves its buffers: modules.norm: eval holds them"
    elif not all(map(same_bits, call.tensors, again)):
        findings.faults[place] = "is random: modules.dropout: eval holds what is frozen"
    elif any(map(_differs_in_kind, call.tensors, mixed)):
        findings.faults[place] = "returns other shapes for other samples"
    else:
        pairs = list(zip(call.tensors, mixed, strict=True))
        by_row = [_rows_agree(one, two, shared) for one, two in pairs]
        findings.constants[place] = [not agree for agree in by_row]
        if not all(a or same_bits(*pair) for a, pair in zip(by_row, pairs, strict=True)):
            findings.faults[place] = "gives a sample other values in other company"


def _rows_agree(one: Tensor, two: Tensor, shared: Sequence[tuple[int, int]]) -> bool:
    """Tell whether two outputs, sample by sample, hold the same bits for the shared samples."""
    left, right = [row for row, _ in shared], [row for _, row in shared]
    has_rows = one.ndim > 0 and one.shape[0] > max(*left, *right)
    return has_rows and same_bits(one[left], two[right])


def _maximal(roots: Sequence[Call], findings: _Findings, given: set[int]) -> list[Call]:
    """Return the outermost calls that nothing speaks against.

    A call that only hands on what others gave (`Identity`, an in-place `ReLU`) is left to run.

    Args:
        roots: Calls of one level.
        findings: What trials have shown.
        given: Storages that chosen calls return, added to.
    """
    found: list[Call] = []
    for call in roots:
        storages = {storage_of(tensor) for tensor in call.tensors}
        is_fit = call.is_frozen and (call.module, call.visit) not in findings.faults
        if not is_fit or call.parent is None:
            found += _maximal(call.children, findings, given)
        elif not storages <= given:
            found.append(call)
            given |= storages
    return found


def _border(
    model: nn.Module,
    batch: Inputs,
    chosen: Sequence[Call],
    findings: _Findings,
    trial: _Trial,
) -> Border:
    places = {(call.module, call.visit) for call in chosen}
    needed, read = _needed_storages(model, batch, places)
    calls: list[FrozenCall] = []
    visits: dict[str, int] = {}
    for root in trial.roots:
        for call, is_outside in _outside_calls(root, places):
            visit = visits.get(call.module, 0)
            visits[call.module] = visit + 1
            if not is_outside:
                place = (call.module, call.visit)
                leaves = _leaves(call, needed[place], findings.constants[place], batch)
                calls.append(FrozenCall(call.module, visit, _hollow(call.output), leaves))
    return Border(tuple(calls), frozenset(batch) - read, _reasons(model, findings, trial))


def _reasons(model: nn.Module, findings: _Findings, trial: _Trial) -> tuple[str, ...]:
    """Return a line for each innermost module that a trial spoke against."""
    lines: dict[str, None] = {}
    for place, fault in findings.faults.items():
        below = (inner for child in trial.calls[place].children for inner in child.walk())
        if not any((inner.module, inner.visit) in findings.faults for inner in below):
            module = place[0]
            kind = type(model.get_submodule(module)).__name__
            lines[f"{module or 'the network'} ({kind}) {fault}"] = None
    return tuple(lines)


def _outside_calls(call: Call, chosen: Collection[tuple[str, int]]) -> Iterator[tuple[Call, bool]]:
    """Yield the calls that are not inside a chosen one, and whether each is itself outside."""
    if (call.module, call.visit) in chosen:
        yield call, False
        return
    yield call, True
    for child in call.children:
        yield from _outside_calls(child, chosen)


def _needed_storages(
    model: nn.Module, batch: Inputs, chosen: Collection[tuple[str, int]]
) -> tuple[dict[tuple[str, int], list[bool]], frozenset[str]]:
    """Return which outputs of the chosen calls are needed, and which input columns are read.

    An output is needed if through operations outside the chosen calls it reaches a tensor that
    depends on a trained parameter, the network's own output, or Python. Being read alone is not
    enough: what comes of it may only feed another frozen call.
    """
    operations = Operations()
    given: dict[tuple[str, int], list[int]] = {}
    arguments: dict[int, list[Any]] = {}

    def entered(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments[id(call)] = [*args, *kwargs.values()]
        operations.paused += (call.module, call.visit) in chosen

    def left(call: Call) -> None:
        place = (call.module, call.visit)
        if place in chosen:
            operations.paused -= 1
            given[place] = [storage_of(tensor) for tensor in call.tensors]
        elif not call.children and not operations.paused:
            # Code below Python (compiled or custom functions) shows no operation of its own.
            operations.note(call.module, arguments[id(call)], call.output)

    columns = {name: tensor.clone() for name, tensor in batch.items()}
    with undisturbed(model, seed=1), watched(model, entered, left) as roots, operations:
        model(**columns)
    reached = {storage_of(tensor) for root in roots for tensor in root.tensors}
    read = set(reached)
    for operation in reversed(operations.found):
        read |= operation.reads
        if operation.trains or operation.escapes or operation.writes & reached:
            reached |= operation.reads
    needed = {place: [one in reached for one in storages] for place, storages in given.items()}
    return needed, frozenset(n for n, tensor in columns.items() if storage_of(tensor) in read)


def _leaves(
    call: Call, needed: Sequence[bool], constant: Sequence[bool], batch: Inputs
) -> tuple[Leaf, ...]:
    mask = batch.get("attention_mask")
    return tuple(
        Leaf(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            per_sample=not fixed,
            ragged=mask is not None and tensor.ndim > 1 and tensor.shape[:2] == mask.shape,
            needed=is_needed,
        )
        for tensor, is_needed, fixed in zip(call.tensors, needed, constant, strict=True)
    )


def _hollow(output: Any) -> Any:
    """Return an output with its tensors emptied: only its structure is kept."""
    return rebuilt(output, lambda tensor: tensor.detach().new_empty(0))


def _differs_in_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or one.dtype != other.dtype
