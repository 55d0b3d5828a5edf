"""Find the boundary: which calls are frozen, and which of their outputs the rest reads.

Autograd knows what is frozen: a tensor that does not require a gradient depends on no trained
parameter. A call belongs to the frozen prefix if all its outputs are like that, and if the checks
(`checks.py`) find that they depend on the sample alone. No architecture is assumed.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import mask_of
from finetune.activations.find.checks import Findings, Inputs, Trial, make_trials
from finetune.activations.find.flow import Held, follow_values
from finetune.module_calls import Call, Place, is_within, storage_of
from finetune.preserved import preserved
from finetune.store.layout import RowSpec
from finetune.structure import rebuilt

_FOLLOWED = 2
"""Samples of the pass that follows values: fewer ones cost less, and usually go the same ways;
whether they did is checked."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One output tensor of a frozen call."""

    shape: tuple[int, ...]
    """Shape in the probe, batch axis first."""
    dtype: torch.dtype
    per_sample: bool
    """Whether its first axis is the batch; else it is a constant."""
    ragged: bool
    """Whether its second axis is the sequence, whose length differs between batches."""
    needed: bool
    """Whether anything outside the frozen calls uses its values (see `flow.py`)."""
    order: tuple[int, ...]
    """Its axes sorted by stride, largest first: kernels may round by the memory layout."""
    twin: int | None
    """Index of an earlier output of the call that is the same tensor, or None."""


@dataclass(frozen=True, slots=True)
class FrozenCall:
    """An outermost frozen call: its caller is not frozen, or cannot be cached."""

    module: str
    visit: int
    """Number of earlier calls of the module, not counting those inside frozen calls."""
    output: Any
    """Its output in the probe with empty tensors: the structure of an answer."""
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Boundary:
    """The frozen calls of a network, and their outputs that the rest reads."""

    calls: tuple[FrozenCall, ...]
    unread: frozenset[str]
    """Input columns that only frozen calls read."""
    reasons: tuple[str, ...]
    """Why frozen calls were left out, one line each, naming the module and the remedy."""
    places: frozenset[Place]
    """The frozen calls, numbered among all calls of the module."""
    added: frozenset[Held]
    """Frozen tensors outside the calls that enter them."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the frozen modules, without nested ones."""
        return tuple(dict.fromkeys(call.module for call in self.calls))

    @property
    def stored(self) -> dict[str, Leaf]:
        """The outputs that become part of a row, by name."""
        return {
            leaf_name(call, number): leaf
            for call in self.calls
            for number, leaf in enumerate(call.leaves)
            if leaf.needed and leaf.per_sample and leaf.twin is None
        }

    @property
    def specs(self) -> dict[str, RowSpec]:
        """Shape and dtype of each stored output, by name."""
        return {
            name: RowSpec(leaf.shape[1:], str(leaf.dtype).removeprefix("torch."), leaf.ragged)
            for name, leaf in self.stored.items()
        }

    def encloses(self, other: "Boundary") -> bool:
        """Tell whether every frozen module of `other` is one of these or inside one."""
        return all(
            any(is_within(inner, outer) for outer in self.modules) for inner in other.modules
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """Speed of the network, in seconds per sample."""

    prefix: float
    """Time of the frozen calls."""
    whole: float
    """Time of a whole forward pass."""


def leaf_name(call: FrozenCall, number: int) -> str:
    """Return the name of one output of a frozen call."""
    return f"{call.module}#{call.visit}.{number}"


def probe(
    model: nn.Module,
    batch: Inputs,
    mixed: Inputs,
    shared: Sequence[tuple[int, int]],
    *,
    is_right_padded: bool = False,
) -> tuple[Boundary, Pace]:
    """Find the boundary of `model` in its present mask and modes.

    Makes four or more forward passes. The network and the random state are restored afterwards.

    Args:
        model: Called with the batches by keyword.
        batch: Some samples `(B, ...)`.
        mixed: A batch of the same size with some of the samples at other positions.
        shared: Pairs of rows in `batch` and in `mixed` that hold the same sample.
        is_right_padded: Whether batches are padded behind the end of samples, and the mask says so.

    Returns:
        The boundary, and the speed of the network, from the fastest time of each call.
    """
    with preserved(model, attributes=True):
        first, findings = make_trials(model, batch, mixed, shared)
        if reason := findings.other_calls:
            return Boundary((), frozenset(), (reason,), frozenset(), frozenset()), Pace(0.0, 0.0)
        mask = mask_of(batch) if is_right_padded else None
        boundary = _boundary(model, batch, first, findings, mask)
    size = len(next(iter(batch.values())))
    roots = [root.place for root in first.roots]
    # The fastest time of each call: slower ones had to wait for memory or for other programs.
    prefix, whole = (
        sum(min(times[place] for times in findings.times) for place in places)
        for places in (boundary.places, roots)
    )
    return boundary, Pace(prefix / size, whole / size)


def _maximal(roots: Sequence[Call], findings: Findings, given: set[int]) -> list[Place]:
    """Return the outermost frozen calls without a fault.

    Calls that only pass on a tensor (`Identity`, an in-place `ReLU`) are left to run. `given` are
    the storages that chosen calls return; it grows.
    """
    found: list[Place] = []
    for call in roots:
        storages = {storage_of(tensor) for tensor in call.tensors}
        is_fit = call.is_frozen and call.place not in findings.faults
        # The network itself is never chosen: nothing would be left to run.
        if not is_fit or call.is_outermost:
            found += _maximal(call.children, findings, given)
        elif not storages <= given | call.taken:
            found.append(call.place)
            given |= storages
    return found


def _boundary(
    model: nn.Module, batch: Inputs, trial: Trial, findings: Findings, mask: Tensor | None
) -> Boundary:
    """Choose the outermost frozen calls, and drop those that cannot be answered.

    These are calls with effects besides their output, calls that read changing values, and calls
    whose output cannot be rebuilt. Dropping one may make its nested calls outermost: so a loop.
    """
    few = {name: values[:_FOLLOWED] for name, values in batch.items()}
    # Ends, since each round adds faults.
    while True:
        chosen = _maximal(trial.roots, findings, set())
        flow = follow_values(model, few, chosen)
        # With so few samples it makes other calls, or one returns another number of tensors.
        told = {place: len(needed) for place, needed in flow.needed.items()}
        if told != {place: len(trial.calls[place].tensors) for place in chosen}:
            flow = follow_values(model, batch, chosen)
        # An answer is made anew from the structure of an output: try it before it is needed.
        hollow, faults = _hollowed(trial, chosen)
        if not flow.faults and not faults:
            break
        findings.faults |= faults
        findings.faults |= flow.faults
    calls: list[FrozenCall] = []
    visits: dict[str, int] = {}
    for root in trial.roots:
        for call, is_outside in _outside_calls(root, chosen):
            # Counted as `replay.py` sees them: when a call is answered, no calls happen inside it.
            visit = visits.get(call.module, 0)
            visits[call.module] = visit + 1
            if not is_outside:
                place = call.place
                leaves = _leaves(call, flow.needed[place], findings.constants[place], mask)
                calls.append(FrozenCall(call.module, visit, hollow[place], leaves))
    reasons = _reasons(model, findings, trial)
    unread = frozenset(batch) - flow.read
    return Boundary(tuple(calls), unread, reasons, frozenset(chosen), flow.added)


def _reasons(model: nn.Module, findings: Findings, trial: Trial) -> tuple[str, ...]:
    """Return a line for each innermost module that cannot be cached, or that causes it."""
    lines: dict[str, None] = {}
    for place, call in trial.calls.items():
        if (fault := findings.faults.get(place)) is None:
            continue
        below = (inner for child in call.children for inner in child.walk())
        has_inner = any(inner.place in findings.faults for inner in below)
        if place in findings.causes or not has_inner:
            module = place[0]
            kind = type(model.get_submodule(module)).__name__
            lines[f"{module or 'the network'} ({kind}) {fault}"] = None
    return tuple(lines)


def _outside_calls(call: Call, chosen: Collection[Place]) -> Iterator[tuple[Call, bool]]:
    """Yield the calls not inside a chosen one; the flag is False for the chosen ones."""
    if call.place in chosen:
        yield call, False
        return
    yield call, True
    for child in call.children:
        yield from _outside_calls(child, chosen)


def _leaves(
    call: Call, needed: Sequence[bool], constant: Sequence[bool], mask: Tensor | None
) -> tuple[Leaf, ...]:
    # Two outputs at the same place in memory are one tensor: a change in place changes both.
    places = [_place_in_memory(tensor) for tensor in call.tensors]
    return tuple(
        Leaf(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            per_sample=not fixed,
            ragged=mask is not None and tensor.ndim > 1 and tensor.shape[:2] == mask.shape,
            needed=is_needed,
            order=_axes_in_memory(tensor),
            twin=places.index(place) if places.index(place) < number else None,
        )
        for number, (tensor, place, is_needed, fixed) in enumerate(
            zip(call.tensors, places, needed, constant, strict=True)
        )
    )


def _axes_in_memory(tensor: Tensor) -> tuple[int, ...]:
    steps = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda axis: -steps[axis]))


def _place_in_memory(tensor: Tensor) -> tuple[object, ...]:
    return storage_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _hollowed(trial: Trial, chosen: Collection[Place]) -> tuple[dict[Place, Any], dict[Place, str]]:
    """Return the outputs of the chosen calls with empty tensors in place of their own.

    Also returns the calls whose output cannot be rebuilt, and why.
    """
    hollow: dict[Place, Any] = {}
    faults: dict[Place, str] = {}
    for place in chosen:
        try:
            hollow[place] = rebuilt(trial.calls[place].output, _emptied)
        except Exception as error:  # noqa: BLE001 - the user's own type may raise anything
            faults[place] = f"returns what cannot be made anew ({type(error).__name__}: {error})"
    return hollow, faults


def _emptied(tensor: Tensor) -> Tensor:
    return tensor.detach().new_empty((0, *tensor.shape[1:]) if tensor.ndim else ())
