"""Check for `train.compile` and `inference.compile` that this machine can compile a network."""

import os
import shlex
import shutil
import sys

import torch

from finetune.config.written import dotted
from finetune.errors import FinetuneError, Key

_COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""Compiler that torch calls if `CXX` is not set, by `sys.platform`; `g++` on all others."""


def refuse_uncompilable(device: torch.device, *, key: Key = ("train", "compile")) -> None:
    """Refuse to compile for the CPU without a C++ compiler: torch would raise at the first step.

    Args:
        device: Where the network is.
        key: The config key that asks for it.

    Raises:
        FinetuneError: there is none.
    """
    command = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    # CXX may hold arguments as well, as in `ccache g++`.
    if device.type == "cpu" and shutil.which(shlex.split(command)[0]) is None:
        raise FinetuneError(
            f"needs a C++ compiler; {command} not found",
            hint=f"install one, name one by CXX, or leave {dotted(key)} out",
            key=key,
        )
