"""What speaks against taking a frozen call into the prefix, by trial: nothing is assumed.

The network runs on a batch, and again with something changed: the seed, the company that samples
are in, the values of what is trained. A call whose outputs change with any of these, or that moves
what it keeps, cannot be answered from a store.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from finetune.bits import same_bits
from finetune.prefix.outputs import apart_from_tensors
from finetune.prefix.state import (
    attributes,
    buffers,
    buffers_as_they_were,
    moved_attributes,
    moved_buffers,
    other_weights,
    random_as_it_was,
)
from finetune.prefix.trace import Call, watched

Inputs = Mapping[str, Tensor]
Place = tuple[str, int]
"""A call: the name of the module, and how many calls of it came before."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The calls of one forward pass, by their place in it."""

    calls: dict[Place, Call]
    roots: list[Call]
    moved: Collection[str]
    """Buffers that have moved."""
    kept: Collection[tuple[str, str]]
    """Attributes that have moved, with their modules."""

    @property
    def times(self) -> dict[Place, float]:
        """What each call took, in seconds."""
        return {place: call.seconds for place, call in self.calls.items()}


FaultOf = Callable[[Place, Call, Trial], str | None]
"""What a pass with something changed speaks against a call, if anything."""


@dataclass(slots=True)
class Findings:
    """What trials have shown, their tensors let go. Calls are named by their place."""

    other_calls: str | None = None
    """Why the calls of one pass tell nothing about those of the next, or None."""
    faults: dict[Place, str] = field(default_factory=dict)
    """What speaks against a frozen call."""
    causes: set[Place] = field(default_factory=set)
    """Those whose faults make the ones of what they call."""
    constants: dict[Place, list[bool]] = field(default_factory=dict)
    """For each output of a call, whether it is the same for every batch."""
    times: list[dict[Place, float]] = field(default_factory=list)
    """What each call took, in seconds, pass by pass."""


def make_trials(
    model: nn.Module, batch: Inputs, mixed: Inputs, shared: Sequence[tuple[int, int]]
) -> tuple[Trial, Findings]:
    """Run `model` on `batch`, and with something changed: the first pass, and what came out.

    Seed and weights change together, and each alone only where something comes of that. The
    tensors of two passes are in memory at once, not those of all. Buffers, weights and random
    state are as before afterwards, plain attributes are not.

    Args:
        model: The network.
        batch: Some samples.
        mixed: Some of them in other places, among others.
        shared: Pairs of rows, in `batch` and in `mixed`, of one sample.
    """
    first, findings = _watched_pass(model, batch, seed=1), Findings()
    findings.times.append(first.times)
    by_data = "control flow depends on the data: two batches make different calls"
    if not _comes_to_the_same(model, batch, first, findings):
        _find_causes(model, batch, first, findings, by_data)
    by_company = partial(_fault_in_company, findings, shared)
    _compare(findings, first, _watched_pass(model, mixed, seed=1), by_company, by_data)
    return first, findings


def _comes_to_the_same(model: nn.Module, batch: Inputs, first: Trial, findings: Findings) -> bool:
    """Tell whether another seed and other weights together leave all that is frozen as it was."""
    with other_weights(model):
        other = _watched_pass(model, batch, seed=2)
    findings.times.append(other.times)
    tried = Findings()
    _compare(tried, first, other, partial(_fault_by_seed, tried), "other calls")
    return not tried.faults and tried.other_calls is None


def _find_causes(
    model: nn.Module, batch: Inputs, first: Trial, findings: Findings, by_data: str
) -> None:
    """Change one thing at a time, the seed and the weights, to tell which of them it is."""
    by_seed = partial(_fault_by_seed, findings)
    _compare(findings, first, _watched_pass(model, batch, seed=2), by_seed, by_data)
    by_weights = "control flow depends on trained weights: other weights make different calls"
    with other_weights(model):
        _compare(
            findings, first, _watched_pass(model, batch, seed=1), _fault_by_weights, by_weights
        )


def _watched_pass(model: nn.Module, inputs: Inputs, *, seed: int) -> Trial:
    tensors, plain = buffers(model), attributes(model)
    # the network may change its inputs in place
    copies = {name: values.clone() for name, values in inputs.items()}
    with buffers_as_they_were(model), random_as_it_was(seed), watched(model) as roots:
        model(**copies)
        moved = moved_buffers(model, tensors)
    calls = {(call.module, call.visit): call for root in roots for call in root.walk()}
    return Trial(calls, roots, moved, moved_attributes(plain, attributes(model)))


def _compare(
    findings: Findings, first: Trial, other: Trial, fault_of: FaultOf, if_others: str
) -> None:
    """Add to `findings` what a pass shows in which one thing is other than in the first one.

    Args:
        findings: Added to.
        first: The pass with nothing changed.
        other: The one with something changed.
        fault_of: What the change speaks against a call.
        if_others: What it shows if the calls are others.
    """
    findings.times.append(other.times)
    if first.calls.keys() != other.calls.keys():
        findings.other_calls = findings.other_calls or if_others
        return
    for place, call in first.calls.items():
        if not call.is_frozen or place in findings.faults:
            continue
        if fault := fault_of(place, call, other):
            findings.faults[place] = fault


def _fault_by_seed(findings: Findings, place: Place, call: Call, other: Trial) -> str | None:
    name = place[0]
    if any(_is_within(moved.rpartition(".")[0], name) for moved in other.moved):
        return "moves its buffers: modules.norm: eval holds them"
    # the second pass: the first one may fill what is only kept to save time
    kept = sorted(attribute for module, attribute in other.kept if _is_within(module, name))
    if kept:
        findings.causes |= {place} if any(module == name for module, _ in other.kept) else set()
        return f"keeps {kept[0]!r} from call to call, which a stored answer would not move"
    if _same_values(call, other.calls[place]):
        return None
    return "is random: modules.dropout: eval holds what is frozen"


def _fault_by_weights(place: Place, call: Call, other: Trial) -> str | None:
    if _same_values(call, other.calls[place]):
        return None
    return "depends on trained weights past autograd, by detach, no_grad or whole numbers"


def _fault_in_company(
    findings: Findings,
    shared: Sequence[tuple[int, int]],
    place: Place,
    call: Call,
    other: Trial,
) -> str | None:
    mixed = other.calls[place]
    if any(tensor.layout != torch.strided for tensor in call.tensors):
        return "returns a sparse tensor, which no row can hold"
    pairs = list(zip(call.tensors, mixed.tensors, strict=False))
    if len(call.tensors) != len(mixed.tensors) or any(_differs_in_kind(*pair) for pair in pairs):
        return "returns other shapes for other samples"
    if apart_from_tensors(call.output) != apart_from_tensors(mixed.output):
        return "returns other plain values for other samples"
    by_row = [_rows_agree(one, two, shared) for one, two in pairs]
    findings.constants[place] = [not agree for agree in by_row]
    if all(agree or same_bits(*pair) for agree, pair in zip(by_row, pairs, strict=True)):
        return None
    return "gives a sample other values in other company, or samples are not its first axis"


def _is_within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _same_values(one: Call, other: Call) -> bool:
    """Tell whether two calls returned the same tensors."""
    pairs = zip(one.tensors, other.tensors, strict=False)
    return len(one.tensors) == len(other.tensors) and all(same_bits(*pair) for pair in pairs)


def _rows_agree(one: Tensor, two: Tensor, shared: Sequence[tuple[int, int]]) -> bool:
    """Tell whether two outputs, sample by sample, agree on the shared samples but for rounding.

    In so small a batch kernels may round by the place of a sample. Whether batches of the size
    that training takes have the very same bits is another trial, see `exact.py`.
    """
    left, right = [row for row, _ in shared], [row for _, row in shared]
    if one.ndim == 0 or one.shape[0] <= max(*left, *right):
        return False
    ours, theirs = one[left], two[right]
    if same_bits(ours, theirs):
        return True
    if not ours.is_floating_point() or ours.numel() == 0:
        return False
    formats = [ours.dtype, *_autocast_formats(ours.device.type)]
    rounding = max(torch.finfo(dtype).eps for dtype in formats) ** 0.5
    largest = float(ours.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(ours, theirs, rtol=0, atol=rounding * largest, equal_nan=True)


def _autocast_formats(device: str) -> list[torch.dtype]:
    return [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []


def _differs_in_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or one.dtype != other.dtype
