"""Checks that disqualify a frozen call from caching, each by running the network.

The network runs on a batch, then again with one thing changed: the seed, the other samples in the
batch, the values of trained parameters. A call whose outputs change, or that changes its own
buffers or attributes, cannot be answered from a store.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from finetune.bits import all_same_bits, same_bits
from finetune.module_calls import Call, Place, is_within, storage_of, watched
from finetune.preserved import (
    attributes,
    buffers,
    moved_attributes,
    moved_buffers,
    preserved,
)
from finetune.structure import apart_from_tensors

Inputs = Mapping[str, Tensor]

_BY_DATA = "control flow depends on the data: two batches make different calls"
_PAST_AUTOGRAD = "depends on trained weights past autograd, by detach, no_grad or whole numbers"
_BY_WEIGHTS = "control flow depends on trained weights: other weights make different calls"


@dataclass(frozen=True, slots=True)
class Trial:
    """The module calls of one forward pass."""

    calls: dict[Place, Call]
    roots: list[Call]
    moved: Collection[str]
    """Names of buffers that changed."""
    kept: Collection[tuple[str, str]]
    """Attributes that changed: name of the module, name of the attribute."""

    @property
    def times(self) -> dict[Place, float]:
        """Duration of each call in seconds."""
        return {place: call.seconds for place, call in self.calls.items()}


FaultOf = Callable[[Place, Call, Trial], str | None]
"""Judges a call by a pass with something changed: returns why it cannot be cached, or None."""


@dataclass(slots=True)
class Findings:
    """Results of the checks, without tensors."""

    other_calls: str | None = None
    """Why nothing can be cached because passes make different calls, or None."""
    faults: dict[Place, str] = field(default_factory=dict)
    """Why a frozen call cannot be cached."""
    causes: set[Place] = field(default_factory=set)
    """Calls whose own fault also explains the faults of their nested calls."""
    constants: dict[Place, list[bool]] = field(default_factory=dict)
    """For each output of a call, whether it is the same for every batch (a constant)."""
    times: list[dict[Place, float]] = field(default_factory=list)
    """Duration of each call in seconds, one mapping per pass."""


def make_trials(
    model: nn.Module, batch: Inputs, mixed: Inputs, shared: Sequence[tuple[int, int]]
) -> tuple[Trial, Findings]:
    """Run `model` on `batch` and with changes; return the first pass and the results of all checks.

    Seed and weights are changed together first, and one by one only if that had an effect. At most
    two passes are in memory. Buffers, weights and random state are restored afterwards, plain
    attributes are not. The arguments are those of `boundary.probe`.
    """
    # Always seed 1, unless the change is the seed.
    first, findings = _watched_pass(model, batch, seed=1), Findings()
    findings.times.append(first.times)
    # Such an output has the same bits in all passes: it is the memory of the parameter itself.
    trained = {storage_of(p) for p in model.parameters() if p.requires_grad}
    for place, call in first.calls.items():
        if call.is_frozen and any(storage_of(tensor) in trained for tensor in call.tensors):
            findings.faults[place] = _PAST_AUTOGRAD
    if not _comes_to_the_same(model, batch, first, findings):
        _find_causes(model, batch, first, findings)
    by_company = partial(_fault_in_company, findings, shared)
    _compare(findings, first, _watched_pass(model, mixed, seed=1), by_company, _BY_DATA)
    return first, findings


def _comes_to_the_same(model: nn.Module, batch: Inputs, first: Trial, findings: Findings) -> bool:
    """Tell whether changing seed and weights together leaves all frozen outputs unchanged."""
    # Both at once: mostly neither has an effect, and one pass is saved.
    with _other_weights(model):
        other = _watched_pass(model, batch, seed=2)
    findings.times.append(other.times)
    tried = Findings()
    _compare(tried, first, other, partial(_fault_by_seed, tried), "other calls")
    return not tried.faults and tried.other_calls is None


def _find_causes(model: nn.Module, batch: Inputs, first: Trial, findings: Findings) -> None:
    """Change the seed alone, then the weights alone, to name the cause."""
    by_seed = partial(_fault_by_seed, findings)
    _compare(findings, first, _watched_pass(model, batch, seed=2), by_seed, _BY_DATA)
    with _other_weights(model):
        other = _watched_pass(model, batch, seed=1)
    _compare(findings, first, other, _fault_by_weights, _BY_WEIGHTS)


@contextmanager
def _other_weights(model: nn.Module) -> Iterator[None]:
    """Change the values of trained parameters while the block runs, mostly keeping their signs.

    The change is large enough to alter branches that depend on them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(0)
    with preserved(model, weights=trained):
        with torch.no_grad():
            for parameter in trained:
                factor, shift = (torch.randn(parameter.shape, generator=draw) for _ in range(2))
                parameter.mul_(factor.exp().to(parameter)).add_(1e-3 * shift.to(parameter))
        yield


def _watched_pass(model: nn.Module, inputs: Inputs, *, seed: int) -> Trial:
    # Before the pass: what it moves is found by comparing.
    tensors, plain = buffers(model), attributes(model)
    # Copies, since the network may change its inputs in place.
    copies = {name: values.clone() for name, values in inputs.items()}
    with preserved(model, buffers=True, random=seed), watched(model) as roots:
        model(**copies)
        moved = moved_buffers(model, tensors)
    calls = {call.place: call for root in roots for call in root.walk()}
    return Trial(calls, roots, moved, moved_attributes(plain, attributes(model)))


def _compare(
    findings: Findings, first: Trial, other: Trial, fault_of: FaultOf, if_others: str
) -> None:
    """Compare a pass with the first one; add what disqualifies calls to `findings`.

    `if_others` is the reason to add if the passes make different calls.
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
    if any(is_within(moved.rpartition(".")[0], name) for moved in other.moved):
        return "moves its buffers: modules.norm: eval holds them"
    # Those of the second pass: the first one may fill plain caches, which is harmless.
    kept = sorted(attribute for module, attribute in other.kept if is_within(module, name))
    if kept:
        findings.causes |= {place} if any(module == name for module, _ in other.kept) else set()
        return f"keeps {kept[0]!r} from call to call, which a stored answer would not move"
    if all_same_bits(call.tensors, other.calls[place].tensors):
        return None
    return "is random: modules.dropout: eval holds what is frozen"


def _fault_by_weights(place: Place, call: Call, other: Trial) -> str | None:
    if all_same_bits(call.tensors, other.calls[place].tensors):
        return None
    return _PAST_AUTOGRAD


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
    # The samples differ. If sizes or plain values differ too, rows cannot replace them.
    if _kinds(call) != _kinds(mixed):
        return "returns other shapes for other samples"
    if apart_from_tensors(call.output) != apart_from_tensors(mixed.output):
        return "returns other plain values for other samples"
    pairs = list(zip(call.tensors, mixed.tensors, strict=True))
    by_row = [_rows_agree(one, two, shared) for one, two in pairs]
    findings.constants[place] = [not agree for agree in by_row]
    if all(agree or same_bits(*pair) for agree, pair in zip(by_row, pairs, strict=True)):
        return None
    return "gives a sample other values in other company, or samples are not its first axis"


def _kinds(call: Call) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in call.tensors]


def _rows_agree(one: Tensor, two: Tensor, shared: Sequence[tuple[int, int]]) -> bool:
    """Tell whether two outputs agree on the shared samples up to rounding.

    In such a small batch kernels may round a sample differently by its position. Whether batches of
    the training size are bit-identical is tried later, see `exact.py`.
    """
    left, right = [row for row, _ in shared], [row for _, row in shared]
    # Without a batch axis it must be the same for all samples.
    if one.ndim == 0 or one.shape[0] <= max(*left, *right):
        return False
    ours, theirs = one[left], two[right]
    if same_bits(ours, theirs):
        return True
    if not ours.is_floating_point() or ours.numel() == 0:
        return False
    # Half the digits: allows the rounding of a few layers, but no influence of other samples.
    rounding = torch.finfo(ours.dtype).eps ** 0.5
    device = ours.device.type
    if torch.is_autocast_enabled(device):
        # Layers before this one may have rounded to the autocast dtype, whatever this one returns.
        rounding = max(rounding, torch.finfo(torch.get_autocast_dtype(device)).eps ** 0.5)
    largest = float(ours.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(ours, theirs, rtol=0, atol=rounding * largest, equal_nan=True)
