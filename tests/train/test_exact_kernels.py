"""On a GPU, kernels give the same bits every time, unless the config says otherwise."""

import os
import warnings

import pytest
import torch
from torch.backends import cuda

from finetune.train.exact_kernels import telling_inexact, use_exact_kernels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
INEXACT = (
    "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True, warn_only=True)'."
)
ATTENTION = (
    "Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly enable "
    "determinism call torch.use_deterministic_algorithms(True, warn_only=False)."
)


@pytest.fixture(autouse=True)
def switches(monkeypatch):
    """Leave torch's switches as they were."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    yield
    for switch in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        switch(True)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_a_gpu_is_asked_for_kernels_that_give_the_same_bits():
    use_exact_kernels(CUDA, wanted=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    # The kernels of attention but the plain one give other bits from call to call.
    fast = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled)
    assert not any(is_on() for is_on in fast)
    assert cuda.math_sdp_enabled()


@pytest.mark.parametrize(("device", "wanted"), [(CUDA, False), (CPU, True)], ids=["off", "cpu"])
def test_switches_stay_as_they_are_where_nothing_is_asked(device, wanted):
    use_exact_kernels(device, wanted=wanted)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_an_operation_without_such_a_kernel_is_told_once_and_other_warnings_pass(recwarn):
    lines = []
    with telling_inexact(lines.append):
        for text in (INEXACT, INEXACT, ATTENTION):
            warnings.showwarning(UserWarning(text), UserWarning, "x.py", 1)
        warnings.showwarning(UserWarning("something else"), UserWarning, "x.py", 1)
    assert [line.partition(" has no kernel for this GPU")[0] for line in lines] == [
        "cumsum_cuda_kernel",
        "Memory Efficient attention",
    ]
    assert [str(each.message) for each in recwarn] == ["something else"]


def test_training_tells_it_by_the_run_itself(small_run, monkeypatch, capsys):
    trainer = small_run(train={"steps": 2, "batch_size": 8})
    step = trainer.stepper.model.forward

    def inexact(*args, **columns):
        warnings.warn(INEXACT, stacklevel=1)
        return step(*args, **columns)

    monkeypatch.setattr(trainer.stepper.model, "forward", inexact)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trainer.fit()
    assert capsys.readouterr().err.count("cumsum_cuda_kernel has no kernel for this GPU") == 1
