"""Check for `train.compile` that this machine can compile a network."""

import os
import shlex
import shutil
import sys

import torch

from finetune.errors import FinetuneError

_COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""Compiler that torch calls if `CXX` is not set, by `sys.platform`; `g++` on all others."""


def refuse_uncompilable(device: torch.device) -> None:
    """Refuse to compile for the CPU without a C++ compiler: torch would raise at the first step.

    Raises:
        FinetuneError: there is none.
    """
    command = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    # CXX may hold arguments as well, as in `ccache g++`.
    if device.type == "cpu" and shutil.which(shlex.split(command)[0]) is None:
        raise FinetuneError(
            f"needs a C++ compiler; {command} not found",
            hint="install one, name one by CXX, or leave train.compile out",
            key=("train", "compile"),
        )
