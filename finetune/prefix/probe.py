"""Which calls of a forward pass are frozen, and which of their outputs the rest needs, by trial.

Autograd itself knows what is frozen: a tensor that does not require a gradient depends on no
trained parameter. A call is taken into the prefix if all it returns is like that, and if trials
(`faults.py`) show that it gives each sample the same bits whatever else is in the batch. Nothing
is assumed about architectures.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.prefix.around import Held
from finetune.prefix.faults import Findings, Inputs, Place, Trial, make_trials
from finetune.prefix.flow import follow_values
from finetune.prefix.outputs import rebuilt
from finetune.prefix.shapes import mask_of
from finetune.prefix.state import as_it_was
from finetune.prefix.trace import Call, storage_of
from finetune.store.layout import RowSpec


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
    order: tuple[int, ...]
    """Its axes, from the one whose steps in memory are widest: kernels round by the layout."""
    twin: int | None
    """Number of the leaf before it that is the very same tensor."""


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
    places: frozenset[Place]
    """The same calls, by all calls of the module that came before."""
    added: frozenset[Held]
    """Frozen tensors outside the calls that come into what they are given."""

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
            if leaf.needed and leaf.per_sample and leaf.twin is None
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


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a network runs, in seconds for one sample."""

    prefix: float
    """What the frozen calls take."""
    whole: float
    """What a forward pass takes, those calls among it."""


def leaf_name(call: FrozenCall, number: int) -> str:
    """Name one tensor that a frozen call returns."""
    return f"{call.module}#{call.visit}.{number}"


def probe(
    model: nn.Module,
    batch: Inputs,
    mixed: Inputs,
    shared: Sequence[tuple[int, int]],
    *,
    is_right_padded: bool = False,
) -> tuple[Border, Pace]:
    """Find the frozen prefix of `model` in its present mask and modes.

    Four forward passes are made, or some more; the network and random state are as before
    afterwards.

    Args:
        model: Called with the batches by keyword.
        batch: Some samples `(B, ...)`.
        mixed: Another batch of as many, in which some of the samples come again among others.
        shared: Where: pairs of rows in `batch` and in `mixed` that hold one sample.
        is_right_padded: Whether samples are filled up behind their end, to what each batch
            needs, and their mask tells where that is.

    Returns:
        The border, and how fast the network ran: in the fastest pass, as others may have been
        held up.
    """
    with as_it_was(model):
        first, findings = make_trials(model, batch, mixed, shared)
        if reason := findings.other_calls:
            return Border((), frozenset(), (reason,), frozenset(), frozenset()), Pace(0.0, 0.0)
        mask = mask_of(batch) if is_right_padded else None
        border, chosen = _border(model, batch, first, findings, mask)
    size = len(next(iter(batch.values())))
    roots = [(root.module, root.visit) for root in first.roots]
    prefix, whole = (
        min(sum(times[place] for place in places) for times in findings.times)
        for places in (chosen, roots)
    )
    return border, Pace(prefix / size, whole / size)


def _maximal(roots: Sequence[Call], findings: Findings, given: set[int]) -> list[Place]:
    """Return the outermost calls that nothing speaks against.

    A call that only hands on what others gave (`Identity`, an in-place `ReLU`) is left to run.

    Args:
        roots: Calls of one level.
        findings: What trials have shown.
        given: Storages that chosen calls return, added to.
    """
    found: list[Place] = []
    for call in roots:
        storages = {storage_of(tensor) for tensor in call.tensors}
        place = (call.module, call.visit)
        is_fit = call.is_frozen and place not in findings.faults
        if not is_fit or call.is_outermost:
            found += _maximal(call.children, findings, given)
        elif not storages <= given | call.taken:
            found.append(place)
            given |= storages
    return found


def _border(
    model: nn.Module, batch: Inputs, trial: Trial, findings: Findings, mask: Tensor | None
) -> tuple[Border, list[Place]]:
    """Choose calls; drop those again whose answers would not be all that they do.

    Values pass by them, or moving ones come into them, or what they return cannot be put together.
    """
    while True:
        chosen = _maximal(trial.roots, findings, set())
        flow = follow_values(model, batch, chosen)
        hollow, faults = _hollowed(trial, chosen)
        if not flow.faults and not faults:
            break
        findings.faults |= faults
        findings.faults |= flow.faults
    calls: list[FrozenCall] = []
    visits: dict[str, int] = {}
    for root in trial.roots:
        for call, is_outside in _outside_calls(root, chosen):
            visit = visits.get(call.module, 0)
            visits[call.module] = visit + 1
            if not is_outside:
                place = (call.module, call.visit)
                leaves = _leaves(call, flow.needed[place], findings.constants[place], mask)
                calls.append(FrozenCall(call.module, visit, hollow[place], leaves))
    reasons = _reasons(model, findings, trial)
    unread = frozenset(batch) - flow.read
    return Border(tuple(calls), unread, reasons, frozenset(chosen), flow.added), chosen


def _reasons(model: nn.Module, findings: Findings, trial: Trial) -> tuple[str, ...]:
    """Return a line for each innermost module, or cause, that a trial spoke against."""
    lines: dict[str, None] = {}
    for place, call in trial.calls.items():
        if (fault := findings.faults.get(place)) is None:
            continue
        below = (inner for child in call.children for inner in child.walk())
        has_inner = any((inner.module, inner.visit) in findings.faults for inner in below)
        if place in findings.causes or not has_inner:
            module = place[0]
            kind = type(model.get_submodule(module)).__name__
            lines[f"{module or 'the network'} ({kind}) {fault}"] = None
    return tuple(lines)


def _outside_calls(call: Call, chosen: Collection[Place]) -> Iterator[tuple[Call, bool]]:
    """Yield the calls that are not inside a chosen one, and whether each is itself outside."""
    if (call.module, call.visit) in chosen:
        yield call, False
        return
    yield call, True
    for child in call.children:
        yield from _outside_calls(child, chosen)


def _leaves(
    call: Call, needed: Sequence[bool], constant: Sequence[bool], mask: Tensor | None
) -> tuple[Leaf, ...]:
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
    """Return what chosen calls returned with its tensors emptied: only its structure is kept.

    With it comes what speaks against those of which nothing can be put together again.
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
