"""Run one batch and report what autograd did: gradients, and where the graph is cut."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import FinetuneError
from finetune.freezing.apply import apply_mask, hold_modes
from finetune.freezing.report import fold
from finetune.models.inventory import ParamInfo, take_inventory
from finetune.train.built import Parts


@dataclass(frozen=True, slots=True)
class ParameterGradient:
    """A parameter after one backward pass."""

    name: str
    shape: tuple[int, ...]
    state: str
    """`trained`, `frozen`, or `unreached` where it trains but the loss does not depend on it."""
    norm: float | None
    """Norm of its gradient; None if it has none."""
    block: str
    """The block, or the module outside blocks, that it lies in."""

    @property
    def is_frozen(self) -> bool:
        """Whether it is frozen in the phase."""
        return self.state == "frozen"


@dataclass(frozen=True, slots=True)
class CallInGraph:
    """One call of a module without children, in the order of the forward pass."""

    module: str
    type: str
    shape: tuple[int, ...]
    grad_fn: str | None
    """Type of the output's `grad_fn`; None if the output is outside the graph."""
    gradient_norm: float | None
    """Norm of its output's gradient; None if activations were not asked for."""
    block: str
    """The block, or the module outside blocks, that it lies in."""

    @property
    def is_outside(self) -> bool:
        """Whether its output is outside the graph."""
        return self.grad_fn is None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What autograd did for one batch."""

    samples: int
    """Size of the batch."""
    loss: float
    loss_grad_fn: str | None
    output_grad_fn: str | None
    leaves: tuple[ParameterGradient, ...]
    calls: tuple[CallInGraph, ...]

    @property
    def cut(self) -> tuple[CallInGraph | None, CallInGraph | None]:
        """The first call inside the graph, and the one before it; None for one that is missing."""
        inside = next((n for n, call in enumerate(self.calls) if call.grad_fn), len(self.calls))
        before = self.calls[inside - 1] if inside else None
        return before, self.calls[inside] if inside < len(self.calls) else None


@dataclass(slots=True)
class _Recorder:
    """Calls of modules, filled by forward hooks."""

    calls: list[tuple[str, nn.Module, Tensor, str | None]] = field(default_factory=list)
    """Name, module, output, and the output's node before anything changed it in place."""


def inspect_batch(parts: Parts, *, samples: int, activations: bool, phase: int = 0) -> Inspection:
    """Run one batch forward and backward in one phase and report what autograd did.

    Mutates the gradients, modes and `requires_grad` of the model; takes no optimizer step.

    Args:
        parts: From `build_parts`.
        samples: Size of the batch, at most the number of training samples.
        activations: Whether to keep gradients of module outputs, too.
        phase: Number of the phase, from 0.

    Raises:
        FinetuneError: there is no such phase.
    """
    if phase >= len(parts.plan.phases):
        last = len(parts.plan.phases) - 1
        raise FinetuneError(f"no phase {phase}, the last one is phase {last}")
    example = parts.plan.examples[phase]
    model, frozen = parts.model, example.frozen
    apply_mask(model, frozen)
    hold_modes(model, frozen, example.modules)
    model.train()
    # The first samples, not shuffled, so that two looks see the same batch.
    count = min(samples, len(parts.data.train))
    batch = parts.data.train.fetch(torch.arange(count)).to(parts.device)
    with _recorded(model, activations=activations) as recorder:
        outputs = model(**batch.inputs)
        # Inside: the heads of a detector run with its losses.
        loss = parts.task.loss(outputs, batch)
    # A graph that is cut everywhere is what the user looks for: shown, not raised.
    if loss.requires_grad:
        loss.backward()
    inventory, parameters = take_inventory(model), dict(model.named_parameters())
    blocks = [row.name for row in fold(inventory, frozen)]
    return Inspection(
        samples=count,
        loss=float(loss.detach()),
        loss_grad_fn=_node(loss),
        output_grad_fn=_node(outputs),
        leaves=tuple(_leaf(row, parameters[row.name], blocks) for row in inventory),
        calls=tuple(
            CallInGraph(
                module=name or "(the network)",
                type=type(module).__name__,
                shape=tuple(out.shape),
                grad_fn=node,
                gradient_norm=_norm(out),
                block=_block_of(name, blocks),
            )
            for name, module, out, node in recorder.calls
        ),
    )


@contextmanager
def _recorded(model: nn.Module, *, activations: bool) -> Iterator[_Recorder]:
    """Record every call of a module without children in the block, with its output."""
    recorder = _Recorder()
    handles = [
        module.register_forward_hook(_hook(recorder, name, activations=activations))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    recorder: _Recorder, name: str, *, activations: bool
) -> Callable[[nn.Module, Any, Any], None]:
    """Return the forward hook of one module."""

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        # Recurrent and attention layers return more than their output, which comes first.
        if isinstance(output, tuple):
            output = output[0]
        if not isinstance(output, Tensor):
            return
        if activations and output.requires_grad:
            # autograd drops the gradients of tensors that are not leaves.
            output.retain_grad()
        recorder.calls.append((name, module, output, _node(output)))

    return hook


def _leaf(row: ParamInfo, parameter: nn.Parameter, blocks: Sequence[str]) -> ParameterGradient:
    """Return state and gradient norm of a parameter after the backward pass."""
    if not parameter.requires_grad:
        state = "frozen"
    else:
        state = "unreached" if parameter.grad is None else "trained"
    norm = None if parameter.grad is None else float(parameter.grad.norm())
    return ParameterGradient(row.name, row.shape, state, norm, _block_of(row.name, blocks))


def _block_of(name: str, blocks: Sequence[str]) -> str:
    """Return the innermost of `blocks` that a parameter or module lies in, else its own name."""
    # With a dot, so that `layer.1` does not count as above `layer.10`.
    above = [block for block in blocks if f"{name}.".startswith(f"{block}.")]
    return max(above, key=len, default=name)


def _node(value: Any) -> str | None:
    """Return the type of a tensor's `grad_fn`; None if there is none."""
    if not isinstance(value, Tensor) or value.grad_fn is None:
        return None
    return type(value.grad_fn).__name__


def _norm(output: Tensor) -> float | None:
    """Return the norm of a gradient that was kept by `retain_grad`, else None."""
    kept = output.retains_grad and output.grad is not None
    return float(output.grad.norm()) if kept and output.grad is not None else None
