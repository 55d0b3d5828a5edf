"""Bits are compared in words where they lie so, and in bytes elsewhere; sparse tensors in parts."""

import pytest
import torch

from finetune.bits import fingerprint, same_bits

LAYOUTS = {
    "coo": lambda dense: dense.to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 2)),
    "mkldnn": lambda dense: dense.to_mkldnn(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float64])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
@pytest.mark.parametrize("last", [5, 8, 12])
def test_slices_are_compared_wherever_they_begin_and_end(dtype, first, last):
    whole = torch.arange(16).remainder(2).to(dtype)
    part, copy = whole[first:last], whole[first:last].clone()
    assert same_bits(part, copy)
    copy[-1] = 1 - copy[-1].int()
    assert not same_bits(part, copy)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("laid_out", LAYOUTS.values(), ids=LAYOUTS)
def test_a_tensor_of_another_layout_is_told_apart_by_value_place_and_layout(laid_out):
    dense = torch.diag(torch.arange(1.0, 5.0))
    other, moved = dense.clone(), dense.roll(1, 1)
    other[3, 3] = torch.nextafter(other[3, 3], torch.tensor(9.0))
    one, again = laid_out(dense), laid_out(dense.clone())
    assert same_bits(one, again)
    assert fingerprint(one) == fingerprint(again)
    for different in (laid_out(other), laid_out(moved), dense):
        assert not same_bits(one, different)
        assert not same_bits(different, one)
        assert fingerprint(one) != fingerprint(different)
