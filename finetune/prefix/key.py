"""What stored values depend on, and the key that stands for all of it."""

import inspect
import json
import platform
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.bits import fingerprint
from finetune.freezing.proof import fingerprints
from finetune.prefix.probe import Border
from finetune.store.shelf import key_of

Facts = dict[str, Any]

_DEFINITION = 2
"""Of what a row is, see `passes.py`: rows of an older one are not taken for those of this."""
_LEFT_OUT = frozenset(vars(nn.Module())) | {"forward", "train", "name_or_path"}
"""What torch keeps in every module, what we put there, and where a network was read from."""
_PROCESSOR = ("model name", "CPU implementer", "CPU part")


def facts_of(
    model: nn.Module,
    border: Border,
    more: Mapping[str, str],
    *,
    known: Mapping[str, str] | None = None,
) -> Facts:
    """Return what the values at a border depend on but for the data, as plain data.

    These are the parameters and buffers of the modules in the prefix, their structure, plain
    attributes, modes and source; frozen tensors that come in from outside of them; the calls that
    are made, and all that tells how torch computes.

    Args:
        model: The network, its mask and modes set.
        border: Where its prefix ends.
        more: What else counts, such as the number format.
        known: Fingerprints taken before that are to stand for what parameters and buffers hold.
    """
    tensors = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers())
        if name in border.added
        or any(name == module or name.startswith(f"{module}.") for module in border.modules)
    ]
    below = {name: model.get_submodule(name) for name in border.modules}
    return dict(more) | {
        "rows": _DEFINITION,
        "tensors": fingerprints(model, tensors, known=known),
        "modules": {name: repr(module) for name, module in below.items()},
        "modes": {name: [m.training for m in top.modules()] for name, top in below.items()},
        "attributes": {name: _plain(module) for name, module in below.items()},
        "source": _source(below.values()),
        "calls": [f"{call.module}#{call.visit}" for call in border.calls],
        "added": [
            [*place, _as_data(getattr(model.get_submodule(place[0]), place[1], None))]
            for place in sorted(name for name in border.added if isinstance(name, tuple))
        ],
        "computing": _computing(next(model.parameters()).device),
    }


def network_key(model: nn.Module, more: Mapping[str, str]) -> str:
    """Return a name for all that trials of `model` depend on, but for the values of tensors."""
    about = {
        "module": repr(model),
        "modes": [module.training for module in model.modules()],
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
        "attributes": _plain(model),
        "hooks": [
            _as_data(hook)
            for module in model.modules()
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        ],
        "source": _source([model]),
        "computing": _computing(next(model.parameters()).device),
    }
    return key_of(dict(more) | about)


def _computing(device: torch.device) -> Facts:
    """Return what torch rounds by besides the network: its version, the machine, its settings."""
    facts: Facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": [torch.backends.cpu.get_cpu_capability(), _processor()],
        "mkldnn": torch.backends.mkldnn.enabled,
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type != "cuda":
        return facts
    cudnn = torch.backends.cudnn
    return facts | {
        "gpu": torch.cuda.get_device_name(device),
        "cudnn": [cudnn.version(), cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark],
    }


@cache
def _processor() -> str:
    """Return the model of the processor: libraries choose their kernels by it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        # the last two are how ARM tells it
        told = [line for line in lines if line.startswith(_PROCESSOR)]
        if told:
            return ", ".join(sorted({line.partition(":")[2].strip() for line in told}))
    return platform.processor()


def _plain(top: nn.Module) -> list[Facts]:
    """Return the plain attributes of a module and all below it, its `config` among them."""
    return [
        {name: _as_data(value) for name, value in vars(module).items() if name not in _LEFT_OUT}
        for module in top.modules()
    ]


def _as_data(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return something that JSON can hold and that differs when the value does, where known.

    Args:
        value: Anything.
        around: What it lies in, by identity: a list may hold itself.
    """
    inside = (*around, id(value))
    match value:
        case None | bool() | int() | float() | str():
            return value
        case _ if id(value) in around:
            return "itself"
        case Mapping():
            return {str(key): _as_data(item, inside) for key, item in value.items()}
        case list() | tuple() | deque():
            return [_as_data(item, inside) for item in value]
    return _thing_as_data(value)


def _thing_as_data(value: Any) -> Any:
    """Do the same for what is neither plain nor a container that may hold anything."""
    match value:
        case Tensor():
            return fingerprint(value)
        case np.ndarray():
            return [value.dtype.str, value.shape, blake2b(value.tobytes()).hexdigest()]
        case np.generic():
            return _as_data(value.item())
        case set() | frozenset():
            return sorted(map(repr, value))
        case nn.Module():
            return None
    if callable(to_dict := getattr(value, "to_dict", None)):
        plain = json.loads(json.dumps(to_dict(), sort_keys=True, default=str))
        # where a network was read from says nothing, and its kernel is no part of `to_dict`
        told = {key: item for key, item in plain.items() if not key.endswith("name_or_path")}
        return told | {"kernel": getattr(value, "_attn_implementation", None)}
    # a function, or an object of which only the kind is known
    named = (
        value if hasattr(value, "__qualname__") and hasattr(value, "__module__") else type(value)
    )
    return f"{named.__module__}.{named.__qualname__}"


def _source(modules: Any) -> str:
    """Return a hash of the code of all classes in the prefix, as far as there is source.

    The whole file of a class counts: it holds what its methods call, and finding the lines of one
    class among them takes longer than all of them do.
    """
    classes = {type(inner) for module in modules for inner in module.modules()}
    digest = blake2b(digest_size=16)
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
    for name in sorted({kind.__module__ for kind in classes}):
        with suppress(OSError, TypeError, KeyError):
            digest.update(inspect.getsource(sys.modules[name]).encode())
    return digest.hexdigest()
