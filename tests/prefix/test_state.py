"""Bits are compared in words where they lie so, and in bytes elsewhere."""

import pytest
import torch

from finetune.prefix.state import same_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float64])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
@pytest.mark.parametrize("last", [5, 8, 12])
def test_slices_are_compared_wherever_they_begin_and_end(dtype, first, last):
    whole = torch.arange(16).remainder(2).to(dtype)
    part, copy = whole[first:last], whole[first:last].clone()
    assert same_bits(part, copy)
    copy[-1] = 1 - copy[-1].int()
    assert not same_bits(part, copy)
