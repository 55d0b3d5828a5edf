"""What each phase costs, told before a step is taken: FLOPs, memory, sizes on disk."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from finetune.config.freeze import ModulesConfig, OnPlateau
from finetune.config.optim import OptimizerConfig
from finetune.config.run import RunConfig
from finetune.data.loader import Batch, sample_order, windows
from finetune.freezing.apply import apply_mask, hold_modes, release_modes
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.proof import fingerprint
from finetune.freezing.rows import rows_of
from finetune.train.course import latest_end, steps_of_epoch
from finetune.train.precision import Precision
from finetune.train.setup import Parts
from finetune.train.sizes import Entry, file_bytes, optimizer_state
from finetune.train.tasks import Task

_FEW, _MORE = 2, 3
"""Samples of the two passes that are measured; a line through both gives all other sizes."""
_SEPARATOR = "//"
"""Stands between a parameter's name and the name of its state in the optimizer's file."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What training takes in one phase."""

    flops_per_step: int
    """Floating-point operations of an optimizer step, forward and backward."""
    weights_bytes: int
    """Parameters and buffers."""
    gradients_bytes: int
    optimizer_bytes: int
    """State of every parameter trained so far that trains in this phase or a later one."""
    activations_bytes: int
    """What autograd keeps of a forward pass over one micro-batch."""
    delta_file_bytes: int
    """Size of `weights.safetensors` in a checkpoint at the end of the phase."""
    optimizer_file_bytes: int
    """Size of `optimizer.safetensors` there."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a phase lies in the run."""

    began: int
    ends: int
    """Step at which it ends at the latest."""
    is_certain: bool
    """Whether no phase up to its end waits for a metric."""


@dataclass(frozen=True, slots=True)
class PlanCosts:
    """What a plan costs, next to training everything from the first step to the last."""

    phases: tuple[Costs, ...]
    full: Costs
    spans: tuple[Span, ...]

    @property
    def share_of_flops(self) -> float | None:
        """FLOPs of the run as a share of full training; None where metrics decide on its course."""
        if not all(span.is_certain for span in self.spans):
            return None
        steps = [span.ends - span.began for span in self.spans]
        spent = sum(n * cost.flops_per_step for n, cost in zip(steps, self.phases, strict=True))
        return spent / max(1, self.full.flops_per_step * sum(steps))


@dataclass(frozen=True, slots=True)
class _Measured:
    """What forward and backward passes of a phase take."""

    flops_per_step: int
    activations_bytes: int
    moved: frozenset[str]
    """Buffers that they move."""


def predict_costs(parts: Parts, config: RunConfig) -> PlanCosts:
    """Predict what every phase costs, from passes over 2 and 3 samples in each.

    FLOPs and activations grow in a straight line with the samples of a micro-batch, so two passes
    give those of any size; the samples are cut from the first micro-batch of the run, padded as
    there. FLOPs are those that torch's `FlopCounterMode` knows: matrix products, convolutions and
    attention. The model is left as it was: parameters, buffers, gradients, modes, random state.

    Raises:
        ModelError: in some phase the loss depends on no trained parameter.
    """
    plan, meter = parts.plan, _Meter.of(parts, config)
    everything = replace(
        plan.phases[0],
        frozen=frozenset(p.name for p in plan.inventory if not p.floating),
        until=None,
    )
    full = replace(plan, phases=(everything,))
    return PlanCosts(
        phases=_costs(plan, parts, config, meter),
        full=_costs(full, parts, config, meter)[0],
        spans=_spans(plan, steps_of_epoch(len(parts.data.train), config.train), parts.total_steps),
    )


def weight_decay_of(config: OptimizerConfig) -> float:
    """Return the weight decay of an optimizer: as given, or its own default; 0 if it knows none."""
    known = inspect.signature(getattr(torch.optim, config.type)).parameters.get("weight_decay")
    return float(config.arguments.get("weight_decay", known.default if known else 0.0))


def _costs(plan: Plan, parts: Parts, config: RunConfig, meter: "_Meter") -> tuple[Costs, ...]:
    state = optimizer_state(plan, config.optimizer, parts.device)
    trained = set(plan.ever_trained)
    delta = {p.name: Entry.of_param(p) for p in plan.inventory if p.name in trained}
    buffers = dict(parts.model.named_buffers(remove_duplicate=False))
    costs: list[Costs] = []
    for number, phase in enumerate(plan.phases):
        measured = meter.measure(phase)
        held = {
            f"{name}{_SEPARATOR}{part}": entry
            for name in _holding_state(plan, number)
            for part, entry in state[name].items()
        }
        delta |= {name: Entry.of(buffers[name]) for name in sorted(measured.moved)}
        costs.append(
            Costs(
                flops_per_step=measured.flops_per_step,
                weights_bytes=_weights_bytes(parts.model),
                gradients_bytes=_gradients_bytes(parts.model, plan, phase),
                optimizer_bytes=sum(entry.size_bytes for entry in held.values()),
                activations_bytes=measured.activations_bytes,
                delta_file_bytes=file_bytes(delta),
                optimizer_file_bytes=file_bytes(held),
            )
        )
    return tuple(costs)


@dataclass(frozen=True, slots=True)
class _Meter:
    """Runs a few samples through the network as a phase would."""

    model: nn.Module
    task: Task
    precision: Precision
    few: Batch
    more: Batch
    sizes: tuple[int, ...]
    """Sizes of the micro-batches of a whole step."""
    known: dict[tuple[frozenset[str], ModulesConfig], _Measured]
    """What was measured before, by all that it depends on."""

    @classmethod
    def of(cls, parts: Parts, config: RunConfig) -> Self:
        """Cut the samples from the first micro-batch of the run, padded as there."""
        samples, settings = parts.data.train, config.train
        order = sample_order(len(samples), config.seed, 0)
        window = windows(order, settings.batch_size, drop_last=False)[0]
        cut = window.split(settings.pass_size)
        batch = samples.fetch(cut[0]).to(parts.device)
        precision = Precision(settings.precision, parts.device)
        few, more = _rows(batch, _FEW), _rows(batch, _MORE)
        return cls(parts.model, parts.task, precision, few, more, tuple(map(len, cut)), {})

    def measure(self, phase: Phase) -> _Measured:
        """Return what the passes of a phase take."""
        key = phase.frozen, phase.modules
        if key not in self.known:
            few, more = self._pass(phase, self.few), self._pass(phase, self.more)
            self.known[key] = _Measured(
                round(sum(self._at(size, few[0], more[0]) for size in self.sizes)),
                round(self._at(max(self.sizes), few[1], more[1])),
                few[2],
            )
        return self.known[key]

    def _at(self, size: int, few: int, more: int) -> float:
        """Read a size off the line through two measured points, or through one and the origin."""
        gap = len(self.more) - len(self.few)
        if not gap:
            return few * size / len(self.few)
        return few + (more - few) * (size - len(self.few)) / gap

    def _pass(self, phase: Phase, batch: Batch) -> tuple[int, int, frozenset[str]]:
        """Return FLOPs, bytes kept and buffers moved of one batch, and undo what it did."""
        model = self.model
        with _left_as_it_was(model), _every_operation_seen():
            apply_mask(model, phase.frozen)
            hold_modes(model, phase.frozen, phase.modules)
            model.train()
            before, kept = _digests(model), _KeptForBackward(model)
            with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
                with saved_tensors_hooks(kept.pack, _unpacked), self.precision.autocast():
                    loss = self.task.loss(model(**batch.inputs), batch).sum() / len(batch)
                self.precision.backward(loss)
            after = _digests(model)
        moved = frozenset(name for name, digest in after.items() if before.get(name) != digest)
        return counter.get_total_flops(), kept.size_bytes, moved


def _convolution_backward(
    grad: list[int], inputs: list[int], weight: list[int], *rest: Any, **_: Any
) -> int:
    """Count each of the two gradients of a convolution as much as its forward pass.

    torch's own formula multiplies the channels of all groups with each other, which counts a
    depthwise convolution over C channels C times too much.
    """
    transposed, wanted = bool(rest[4]), rest[7]
    once: int = conv_flop_count(inputs, weight, grad, transposed=transposed)
    return once * (bool(wanted[0]) + bool(wanted[1]))


def _attention(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
    once: int = sdpa_flop_count(query, key, value)
    return once


def _attention_backward(
    _: list[int], query: list[int], key: list[int], value: list[int], *__: Any, **___: Any
) -> int:
    return 2 * _attention(query, key, value)


_FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    # torch counts the attention of GPUs, not the one of the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _KeptForBackward:
    """Adds up the storages that autograd keeps, without those of the model itself."""

    __slots__ = ("_own", "_sizes")

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Note one tensor; a view keeps the whole storage that it looks at."""
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own:
                self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    @property
    def size_bytes(self) -> int:
        """Bytes noted so far."""
        return sum(self._sizes.values())


def _unpacked(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _every_operation_seen() -> Iterator[None]:
    """Keep frozen transformer layers of torch from a fused operation that nobody counts."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back flags, gradients, modes, buffers and random state when the block is over.

    Weights need no copy, but for an embedding with `max_norm`: no other changes them in forward.
    """
    parameters = dict(model.named_parameters())
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    modules = list(model.modules())
    modes = [(module, module.training, module.__dict__.get("train")) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    rescaled = [
        (parameter, parameter.detach().clone())
        for module in modules
        if getattr(module, "max_norm", None) is not None
        for parameter in module.parameters(recurse=False)
    ]
    device = next(iter(parameters.values())).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            for parameter in parameters.values():
                parameter.grad = None
            yield
        finally:
            apply_mask(model, frozen)
            release_modes(model)
            for name, gradient in gradients.items():
                parameters[name].grad = gradient
            for module, mode, hold in modes:
                module.training = mode
                if hold is not None:
                    module.__dict__["train"] = hold
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    module._buffers[name] = buffer
                for weight, value in rescaled:
                    weight.copy_(value)


def _rows(batch: Batch, count: int) -> Batch:
    inputs = {name: values[:count] for name, values in batch.inputs.items()}
    target = None if batch.target is None else batch.target[:count]
    return Batch(inputs, target, batch.indices[:count])


def _holding_state(plan: Plan, number: int) -> list[str]:
    """Return the names that have optimizer state in a phase, in the model's order."""
    ahead, so_far = plan.trained_from(number), plan.phases[: number + 1]
    return [
        name
        for name in plan.ever_trained
        if name in ahead and any(name not in phase.frozen for phase in so_far)
    ]


def _gradients_bytes(model: nn.Module, plan: Plan, phase: Phase) -> int:
    """Add up the gradients; a parameter of which some rows train has one as large as itself."""
    trained = {rows_of(p.name)[0] for p in plan.inventory if p.name not in phase.frozen}
    return sum(_bytes(tensor) for name, tensor in model.named_parameters() if name in trained)


def _weights_bytes(model: nn.Module) -> int:
    return sum(map(_bytes, model.parameters())) + sum(map(_bytes, model.buffers()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _digests(model: nn.Module) -> dict[str, str]:
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: fingerprint(buffer) for name, buffer in buffers}


def _spans(plan: Plan, steps_per_epoch: int, total: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    began, is_certain = 0, True
    for phase in plan.phases:
        is_certain = is_certain and not isinstance(phase.until, OnPlateau)
        ends = latest_end(phase.until, began, steps_per_epoch, total)
        spans.append(Span(began, ends, is_certain))
        began = ends
    return tuple(spans)
