"""Measure FLOPs and memory of a phase with a few samples, and leave the model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from finetune.activations.estimate import TOO_FEW, Estimate, Use, find_estimate, too_few_come
from finetune.activations.find.boundary import Boundary
from finetune.bits import fingerprint
from finetune.config.freeze import ModulesConfig
from finetune.config.run import RunConfig
from finetune.data.batches import Batch, sample_order, windows
from finetune.freezing.apply import mask_given_back, take_on
from finetune.freezing.plan import Phase
from finetune.module_calls import storage_of
from finetune.preserved import preserved
from finetune.preview.flop_formulas import ALL_FORMULAS, FORMULAS
from finetune.preview.without_products import WithoutProducts
from finetune.tasks.task import Task
from finetune.train.built import Parts
from finetune.train.cache_use import cache_use
from finetune.train.precision import Precision

_FEW, _MORE = 2, 3
"""Samples in the two measured passes; a line through both gives all other sizes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of the forward and backward passes of a phase."""

    flops_per_step: int
    """Floating-point operations of an optimizer step, forward and backward."""
    forward_flops_per_step: int
    """FLOPs of its forward passes."""
    prefix_flops_per_step: int
    """FLOPs that stored rows would save."""
    activations_bytes: int
    """Tensors that autograd keeps from the forward pass of the largest micro-batch."""
    moved: frozenset[str]
    """Buffers that training moves."""
    estimate: Estimate | str
    """Estimate for the activation cache, or why there is nothing to store."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """Counts of one forward and backward pass."""

    flops: int
    forward: int
    prefix: int
    kept: int
    moved: frozenset[str]
    """Buffers that had other bits afterwards."""
    touched: bool
    """Whether any buffer was written to or replaced, with other bits or the same."""


class _Mark(NamedTuple):
    """What shows whether a buffer was written to."""

    bits: str
    writes: int
    storage: int


@dataclass(frozen=True, slots=True)
class Meter:
    """Runs a few samples through the network as a phase would.

    The model is left as it was: parameters, buffers, gradients, modes, random state.
    """

    model: nn.Module
    task: Task
    precision: Precision
    few: Batch
    more: Batch
    sizes: tuple[int, ...]
    """Sizes of the micro-batches in a whole step."""
    use: Use | None
    """How the run would use the activation cache; None if the cache is off."""
    known: dict[tuple[frozenset[str], ModulesConfig], Measured]
    """Measurements by mask and modes. They do not depend on the number of visits."""

    @classmethod
    def of(cls, parts: Parts, config: RunConfig) -> Self:
        """Return the meter of a run; its samples are the first of the run's first micro-batch."""
        samples, settings = parts.data.train, config.train
        order = sample_order(len(samples), config.seed, 0)
        window = windows(order, settings.batch_size, drop_last=False)[0]
        cut = window.split(settings.pass_size)
        batch = samples.fetch(cut[0]).to(parts.device)
        precision = Precision(settings.precision, parts.device)
        few, more = batch.at(slice(_FEW)), batch.at(slice(_MORE))
        use = cache_use(config, parts) if config.cache.use == "auto" else None
        return cls(parts.model, parts.task, precision, few, more, tuple(map(len, cut)), use, {})

    def measure(self, phase: Phase, epochs: float) -> Measured:
        """Return the measurements of a phase, made once per mask and modes.

        Args:
            phase: Its mask and modes.
            epochs: How long the phase lasts.
        """
        key = phase.frozen, phase.modules
        if key not in self.known:
            found = self._prospect(phase)
            few = self._pass(phase, self.few, found)
            if few.touched:
                # Only the right values show whether a buffer moves.
                few = self._pass(phase, self.few, found, is_forward_computed=True)
            more = self._pass(phase, self.more, found)
            self.known[key] = Measured(
                self._of_step(few.flops, more.flops),
                self._of_step(few.forward, more.forward),
                self._of_step(few.prefix, more.prefix),
                round(self._at(max(self.sizes), few.kept, more.kept)),
                few.moved,
                found,
            )
        known = self.known[key]
        if isinstance(known.estimate, str) or self.use is None:
            return known
        # Only the estimate depends on the length, so phases of one mask share the passes.
        too_few = too_few_come(self.use, epochs)
        return replace(known, estimate=TOO_FEW if too_few else known.estimate.at(epochs))

    def _of_step(self, few: int, more: int) -> int:
        """Return the FLOPs of a step, given those of the two measured passes."""
        return round(sum(self._at(size, few, more) for size in self.sizes))

    def _prospect(self, phase: Phase) -> Estimate | str:
        """Probe the network as the run does at the start of the phase, for a single epoch."""
        if self.use is None:
            return "cache: off"
        with _left_as_it_was(self.model):
            take_on(self.model, phase.frozen, phase.modules)
            return find_estimate(self.model, self.use, epochs=1.0, anyhow=True)

    def _at(self, size: int, few: int, more: int) -> float:
        """Return the value for a batch size, on a line through both points or point and origin."""
        gap = len(self.more) - len(self.few)
        # A micro-batch of fewer than three samples gives one point only.
        if not gap:
            return few * size / len(self.few)
        return few + (more - few) * (size - len(self.few)) / gap

    def _pass(
        self,
        phase: Phase,
        batch: Batch,
        estimate: Estimate | str,
        *,
        is_forward_computed: bool = False,
    ) -> _Pass:
        """Run one batch forward and backward, and undo what it did.

        Matrix products that are not computed leave FLOPs and sizes as they are. Those of the
        forward pass may decide which buffers move.
        """
        products = WithoutProducts(ALL_FORMULAS, fills=not is_forward_computed)
        with suppress(Exception):
            found = self._counted(phase, batch, estimate, products)
            # Code of the user may have caught the error of a read, and gone another way.
            if not products.was_read:
                return found
        # Values decide what this network runs: which expert gets a token, say. Or they must be
        # right for it to run at all.
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        return self._counted(phase, batch, estimate, counter)

    def _counted(
        self,
        phase: Phase,
        batch: Batch,
        estimate: Estimate | str,
        counter: FlopCounterMode | WithoutProducts,
    ) -> _Pass:
        """Run one batch, and count."""
        model = self.model
        boundary = estimate.boundary if isinstance(estimate, Estimate) else None
        with _left_as_it_was(model), _every_operation_seen():
            take_on(model, phase.frozen, phase.modules)
            # Any module may move a buffer in training mode: only a pass shows which.
            before, kept = _marks(model), _KeptForBackward(model)
            with counter.entered() if isinstance(counter, WithoutProducts) else counter:
                with (
                    saved_tensors_hooks(kept.pack, _unpacked),
                    self.precision.autocast(),
                    _flops_within(model, boundary, counter) as within,
                ):
                    loss = self.task.loss(model(**batch.inputs), batch)
                # Read here: the backward pass adds to the same counter.
                forward = counter.get_total_flops()
                if isinstance(counter, WithoutProducts):
                    counter.fills = True
                self.precision.backward(loss)
            after = _marks(model)
            # Writes through `.data` are not counted by torch.
            is_filled = isinstance(counter, WithoutProducts) and any(
                map(counter.is_filled, model.buffers())
            )
        moved = {name for name, mark in after.items() if _bits(before.get(name)) != mark.bits}
        return _Pass(
            counter.get_total_flops(),
            forward,
            sum(within),
            kept.size_bytes,
            frozenset(moved),
            touched=before != after or is_filled,
        )


@contextmanager
def _flops_within(
    model: nn.Module, boundary: Boundary | None, counter: FlopCounterMode | WithoutProducts
) -> Iterator[list[int]]:
    """Yield a list that receives the FLOPs of each call in the prefix of a boundary."""
    chosen = {(call.module, call.visit) for call in boundary.calls} if boundary else set()
    visits: dict[str, int] = {}
    inside: list[tuple[nn.Module, int]] = []
    found: list[int] = []

    def enter(name: str, module: nn.Module) -> None:
        # Calls inside a frozen call are part of it, and have no number in the boundary.
        if not inside:
            visit = visits.get(name, 0)
            visits[name] = visit + 1
            if (name, visit) in chosen:
                inside.append((module, counter.get_total_flops()))

    def leave(module: nn.Module, *_: Any) -> None:
        if inside and inside[0][0] is module:
            found.append(counter.get_total_flops() - inside.pop()[1])

    handles = []
    for name in {module for module, _ in chosen}:
        module = model.get_submodule(name)
        # First of all hooks, so that operations of others count as well.
        hook = module.register_forward_pre_hook(lambda m, _, n=name: enter(n, m), prepend=True)
        handles += [hook, module.register_forward_hook(leave)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _KeptForBackward:
    """Adds up the storages that autograd keeps, without those of the model itself."""

    __slots__ = ("_own", "_sizes")

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Add the storage of a saved tensor once; a view keeps its whole storage alive."""
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own:
                self._sizes[storage.data_ptr()] = storage.nbytes()
        # Detached: a saved output that is not would keep alive the graph that holds it.
        return tensor.detach()

    @property
    def size_bytes(self) -> int:
        """Bytes noted so far."""
        return sum(self._sizes.values())


def _unpacked(tensor: Tensor) -> Tensor:
    """Return a saved tensor as it was packed."""
    return tensor


@contextmanager
def _every_operation_seen() -> Iterator[None]:
    """Switch off the fused operation of torch's transformer layers, which is not counted."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore flags, gradients, modes, buffers, attributes and random state after the block.

    Weights need no copy, but for an embedding with `max_norm`: no other changes them in forward.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    rescaled = [
        parameter
        for module in model.modules()
        if getattr(module, "max_norm", None) is not None
        for parameter in module.parameters(recurse=False)
    ]
    as_before = preserved(model, buffers=True, attributes=True, random=0, weights=rescaled)
    with as_before, mask_given_back(model):
        # A backward pass would add to them in place, and to what a caller holds.
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _marks(model: nn.Module) -> dict[str, _Mark]:
    """Return the mark of every buffer by name."""
    return {
        name: _Mark(
            fingerprint(buffer),
            # torch counts the writes to all tensors but those made in inference mode
            0 if buffer.is_inference() else buffer._version,
            storage_of(buffer),
        )
        for name, buffer in model.named_buffers(remove_duplicate=False)
    }


def _bits(mark: _Mark | None) -> str | None:
    return None if mark is None else mark.bits
