"""What speaks against taking a frozen call into the prefix, by trial: nothing is assumed.

The network runs on a batch, and again with one thing changed: the seed, the company that samples
are in, the values of what is trained. A call whose outputs change with any of these, or that moves
what it keeps, cannot be answered from a store.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.prefix.outputs import apart_from_tensors
from finetune.prefix.state import (
    attributes,
    buffers,
    buffers_as_they_were,
    moved_attributes,
    moved_buffers,
    other_weights,
    same_bits,
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
    """Modules one of whose buffers has moved."""
    kept: Collection[tuple[str, str]]
    """Attributes that have moved, with their modules."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Forward passes that differ in one thing from the first."""

    first: Trial
    seed: Trial
    """With another seed."""
    company: Trial
    """With some of the samples in other places, among others."""
    weights: Trial
    """With other values in what is trained."""

    @property
    def other_calls(self) -> str | None:
        """Why the calls of one pass tell nothing about those of the next, or None."""
        calls = self.first.calls.keys()
        if not calls == self.seed.calls.keys() == self.company.calls.keys():
            return "control flow depends on the data: two batches make different calls"
        if calls != self.weights.calls.keys():
            return "control flow depends on trained weights: other weights make different calls"
        return None

    def judged(self, shared: Sequence[tuple[int, int]]) -> "Findings":
        """Return what speaks against each frozen call.

        Args:
            shared: Pairs of rows, in the first batch and in the other company, of one sample.
        """
        findings = Findings()
        for place, call in self.first.calls.items():
            if call.is_frozen and (fault := self._fault(place, shared, findings)):
                findings.faults[place] = fault
        return findings

    def _fault(
        self, place: Place, shared: Sequence[tuple[int, int]], findings: "Findings"
    ) -> str | None:
        name, call, seed = place[0], self.first.calls[place], self.seed
        if any(_is_within(moved, name) for moved in seed.moved):
            return "moves its buffers: modules.norm: eval holds them"
        # the second pass: the first one may fill what is only kept to save time
        kept = sorted(attribute for module, attribute in seed.kept if _is_within(module, name))
        if kept:
            findings.causes |= {place} if any(module == name for module, _ in seed.kept) else set()
            return f"keeps {kept[0]!r} from call to call, which a stored answer would not move"
        if not _same_values(call, seed.calls[place]):
            return "is random: modules.dropout: eval holds what is frozen"
        if not _same_values(call, self.weights.calls[place]):
            return "depends on trained weights past autograd, by detach, no_grad or whole numbers"
        return _fault_in_company(place, call, self.company.calls[place], shared, findings)


@dataclass(slots=True)
class Findings:
    """What trials have shown against a call, by its place."""

    faults: dict[Place, str] = field(default_factory=dict)
    causes: set[Place] = field(default_factory=set)
    """Those whose faults make the ones of what they call."""
    constants: dict[Place, list[bool]] = field(default_factory=dict)


def make_trials(model: nn.Module, batch: Inputs, mixed: Inputs) -> Trials:
    """Run `model` on `batch`, with one thing changed each time.

    Buffers, weights and random state are as before afterwards, plain attributes are not.
    """
    first, seed = _tried(model, batch, seed=1), _tried(model, batch, seed=2)
    company = _tried(model, mixed, seed=1)
    with other_weights(model):
        return Trials(first, seed, company, _tried(model, batch, seed=1))


def _tried(model: nn.Module, inputs: Inputs, *, seed: int) -> Trial:
    tensors, plain = buffers(model), attributes(model)
    # the network may change its inputs in place
    copies = {name: values.clone() for name, values in inputs.items()}
    with buffers_as_they_were(model), torch.random.fork_rng(), watched(model) as roots:
        torch.manual_seed(seed)
        model(**copies)
        moved = moved_buffers(model, tensors)
    calls = {(call.module, call.visit): call for root in roots for call in root.walk()}
    return Trial(calls, roots, moved, moved_attributes(plain, attributes(model)))


def _fault_in_company(
    place: Place, call: Call, mixed: Call, shared: Sequence[tuple[int, int]], findings: Findings
) -> str | None:
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
