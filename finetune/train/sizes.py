"""Predict the size of checkpoint files from the shapes and dtypes of their tensors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from finetune.config.optim import OptimizerConfig
from finetune.freezing.plan import Plan
from finetune.models.inventory import ParamInfo
from finetune.optim.groups import Group, build_optimizer, explained_step, state_by_name

_CODES = {"bfloat": "BF", "float": "F", "uint": "U", "int": "I", "complex": "C"}


@dataclass(frozen=True, slots=True)
class TensorSize:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_not_negative: bool = False
    """Whether its elements are never below zero, whatever the gradients."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @classmethod
    def of_param(cls, param: ParamInfo) -> Self:
        """Describe a parameter, or a slice of its rows."""
        return cls(param.shape, getattr(torch, param.dtype))

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def optimizer_state(
    plan: Plan, config: OptimizerConfig, device: torch.device
) -> dict[str, dict[str, TensorSize]]:
    """Return the sizes of the optimizer state, by parameter name and state name.

    They are measured by a step over tiny parameters, so that any optimizer works. Each axis is cut
    to a length of its own, by which the axes of the state are recognised.
    """
    tiny: dict[TensorSize, dict[str, TensorSize]] = {}
    found: dict[str, dict[str, TensorSize]] = {}
    ever_trained = set(plan.ever_trained)
    for param in plan.inventory:
        if param.name not in ever_trained:
            continue
        whole = TensorSize.of_param(param)
        # Adafactor keeps (R, 1) and (1, C) of a matrix (R, C): lengths must tell R, C and 1 apart.
        cut = tuple(min(length, 2 + axis) for axis, length in enumerate(whole.shape))
        kind = TensorSize(cut, whole.dtype)
        if kind not in tiny:
            tiny[kind] = _state_of(kind, config, device)
        found[param.name] = {
            name: replace(entry, shape=_grown(entry.shape, cut, whole.shape))
            for name, entry in tiny[kind].items()
        }
    return found


def file_bytes(tensors: Mapping[str, TensorSize]) -> int:
    """Return the size of a safetensors file: 8 bytes, JSON header padded to eights, data."""
    header, end = {}, 0
    for name, entry in tensors.items():
        start, end = end, end + entry.size_bytes
        header[name] = {
            "dtype": _code(entry.dtype),
            "shape": entry.shape,
            "data_offsets": (start, end),
        }
    # Written as safetensors does: no spaces, and other letters than ASCII not escaped.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def checkpoint_bytes(
    plan: Plan, kept: Mapping[str, Mapping[str, TensorSize]], *, is_averaged: bool
) -> int:
    """Return the approximate size of a checkpoint: trained weights and optimizer state.

    Args:
        plan: The phases.
        kept: Sizes of the optimizer state, from `optimizer_state`.
        is_averaged: Whether the weights are kept as trained and as averages.
    """
    trained = set(plan.ever_trained)
    weights = {p.name: TensorSize.of_param(p) for p in plan.inventory if p.name in trained}
    state = {f"{name}//{part}": e for name, own in kept.items() for part, e in own.items()}
    return file_bytes(weights) + file_bytes(state) + is_averaged * average_bytes(plan)


def average_bytes(plan: Plan) -> int:
    """Return the bytes of an average of all that trains at a time, in the phase with the most."""
    # A parameter has an average only while it trains, so the phase with the most decides.
    return max(
        sum(TensorSize.of_param(p).size_bytes for p in plan.inventory if p.name in phase.rates)
        for phase in plan.examples
    )


def _state_of(
    kind: TensorSize, config: OptimizerConfig, device: torch.device
) -> dict[str, TensorSize]:
    """Return the sizes of the state that one optimizer step makes for a parameter.

    An entry that is negative after neither gradient, 1 nor -1, never is: a second moment, say.
    """
    # One sign alone would not tell: a first moment after gradient 1 is not negative either.
    up, down = (_stepped(kind, config, device, gradient) for gradient in (1.0, -1.0))
    return {
        name: TensorSize(
            tuple(value.shape),
            value.dtype,
            not value.is_complex() and not bool(((value < 0) | (down[name] < 0)).any()),
        )
        for name, value in up.items()
    }


def _stepped(
    kind: TensorSize, config: OptimizerConfig, device: torch.device, gradient: float
) -> dict[str, Tensor]:
    """Return the state tensors of a tiny parameter after one step with a constant gradient."""
    parameter = nn.Parameter(torch.zeros(kind.shape, dtype=kind.dtype, device=device))
    parameter.grad = torch.full_like(parameter, gradient)
    probe = build_optimizer(config, [Group("tiny", ("tiny",), decays=True)], {"tiny": parameter})
    try:
        probe.step()
    except (OverflowError, RuntimeError) as error:
        raise explained_step(probe, error) from error
    state = state_by_name(probe).get("tiny", {})
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _grown(shape: Sequence[int], cut: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a state over the whole parameter, given its shape over the tiny one."""
    # State without the axes of the parameter, such as a step count, does not grow with it.
    if len(shape) != len(cut):
        return tuple(shape)
    axes = zip(shape, cut, whole, strict=True)
    return tuple(full if length == part else length for length, part, full in axes)


def _code(dtype: torch.dtype) -> str:
    """Return the name of a dtype in safetensors: `F32`, `BF16`, `I64`, `BOOL`."""
    name = str(dtype).removeprefix("torch.")
    kind = name.rstrip("0123456789")
    return f"{_CODES.get(kind, kind.upper())}{name.removeprefix(kind)}"
