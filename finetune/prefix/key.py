"""What stored values depend on, and the key that stands for all of it."""

import inspect
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from finetune.freezing.proof import fingerprints
from finetune.prefix.probe import Border

Facts = dict[str, Any]


def facts_of(model: nn.Module, border: Border, more: Mapping[str, str]) -> Facts:
    """Return what the values at a border depend on but for the data, as plain data.

    These are the parameters and buffers of the modules in the prefix, their structure, modes and
    source, the calls that are made, the version of torch and the number of its threads.

    Args:
        model: The network, its mask and modes set.
        border: Where its prefix ends.
        more: What else counts, such as the number format.
    """
    tensors = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers())
        if any(name == module or name.startswith(f"{module}.") for module in border.modules)
    ]
    below = {name: model.get_submodule(name) for name in border.modules}
    return dict(more) | {
        "tensors": fingerprints(model, tensors),
        "modules": {name: repr(module) for name, module in below.items()},
        "modes": {name: [m.training for m in top.modules()] for name, top in below.items()},
        "source": _source(below.values()),
        "calls": [f"{call.module}#{call.visit}" for call in border.calls],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def key_of(facts: Mapping[str, Any]) -> str:
    """Return a name for a store, that one bit of difference in `facts` changes."""
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


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
