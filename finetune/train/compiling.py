"""`train.compile`: whether this machine can translate a network at all."""

import os
import shlex
import shutil
import sys

import torch

from finetune.errors import FinetuneError

_COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""What torch calls where `CXX` names no other; `g++` elsewhere."""


def refuse_uncompilable(device: torch.device) -> None:
    """Refuse to compile for the CPU without a C++ compiler; torch would at the first step.

    Raises:
        FinetuneError: there is none.
    """
    command = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(shlex.split(command)[0]) is None:
        raise FinetuneError(
            f"needs a C++ compiler; {command} not found",
            hint="install one, name one by CXX, or leave train.compile out",
            key=("train", "compile"),
        )
