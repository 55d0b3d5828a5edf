"""Have a GPU compute with kernels that give the same bits every time.

Several kernels of CUDA and cuDNN add up in an order that changes from call to call, such as the
backward pass of a convolution or of an embedding. A run that was stopped and resumed would then end
with other bits than one that was not, and a cached prefix could not be compared with one that runs.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import torch

_INEXACT = re.compile(
    r"^(.+?) (?:does not have a deterministic implementation|defaults to a non-deterministic algo)"
)
"""How torch's warnings of an operation without such a kernel begin."""


def use_exact_kernels(device: torch.device, *, wanted: bool) -> None:
    """Set torch's switches for deterministic kernels, for the whole process, if a GPU is used.

    Operations that have no such kernel run all the same; `telling_inexact` names them.

    Args:
        device: Where the network is.
        wanted: Whether the config asks for it; otherwise torch's switches stay as they are.
    """
    if device.type != "cuda" or not wanted:
        return
    # cuBLAS adds up in the same order only with workspaces of a fixed size; it reads this when it
    # first runs. https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # While operations without such a kernel only warn, the fast kernels of attention add up in
    # changing order in their backward pass; the plain one does not.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Or every new tensor would be filled with NaN first, which costs time and helps no bit.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def telling_inexact(tell: Callable[[str], None]) -> Iterator[None]:
    """Turn torch's warnings of operations without a deterministic kernel into lines for the user.

    Args:
        tell: Receives one line per operation.
    """
    before, told = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        found = _INEXACT.match(str(message))
        if found is None:
            before(message, category, filename, lineno, file, line)
        elif found[1] not in told:
            told.add(found[1])
            tell(
                f"{found[1]} has no kernel for this GPU that gives the same bits every time: runs "
                "may differ in their last digits, resumed ones too"
            )

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
