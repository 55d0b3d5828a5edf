"""FLOPs of costly operations, from the shapes of their arguments: torch's formulas and ours."""

from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count, shape_wrapper


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
    """Count the forward pass of attention, with torch's own formula."""
    once: int = sdpa_flop_count(query, key, value)
    return once


def _attention_backward(
    _: list[int], query: list[int], key: list[int], value: list[int], *__: Any, **___: Any
) -> int:
    """Count two gradients for each of the two matrix products of attention."""
    return 2 * _attention(query, key, value)


FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    # torch has formulas for the attention kernels of GPUs, and none for that of the CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


ALL_FORMULAS = {**flop_registry, **{op: shape_wrapper(count) for op, count in FORMULAS.items()}}
"""FLOPs of each costly operation, torch's formulas among them, as `FlopCounterMode` calls them."""
