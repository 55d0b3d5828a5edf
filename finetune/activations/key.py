"""Facts: all that rows depend on besides the data. The hash of them is the key of a store."""

import inspect
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.activations.find.boundary import Boundary
from finetune.activations.find.checks import Inputs
from finetune.activations.find.flow import watch_around
from finetune.activations.find.operations import Operation
from finetune.bits import fingerprint
from finetune.freezing.apply import in_mode
from finetune.freezing.proof import fingerprints, hashed
from finetune.module_calls import is_within
from finetune.store.directory import key_of
from finetune.structure import DATA, folded

Facts = dict[str, Any]

_DEFINITION = 6
"""Version of the row definition (`exact.py`); bump it to invalidate old stores."""
_LEFT_OUT = frozenset(vars(nn.Module())) | {"forward", "train", "name_or_path"}
"""Attributes that say nothing: those of every module, our own, and where weights came from."""
_PROCESSOR = ("model name", "CPU implementer", "CPU part")


def facts_of(
    model: nn.Module,
    boundary: Boundary,
    more: Mapping[str, str],
    *,
    known: Mapping[str, str] | None = None,
) -> Facts:
    """Return all that the outputs at a boundary depend on besides the data, as plain data.

    These are parameters and buffers of the frozen modules, their structure, plain attributes,
    modes and source code; frozen tensors that enter from outside; the frozen calls; and versions
    and settings of torch that affect rounding.

    Args:
        model: The network, its mask and modes set.
        boundary: Its boundary.
        more: Further facts, such as the precision.
        known: Fingerprints of tensors that were taken already.
    """
    # Tensors of the frozen modules, and tensors from outside that enter them, such as embeddings.
    tensors = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers())
        if name in boundary.added or any(is_within(name, module) for module in boundary.modules)
    ]
    below = {name: model.get_submodule(name) for name in boundary.modules}
    # In doubt a fact is included: one too many costs a store, one too few would cost bits.
    return dict(more) | {
        "rows": _DEFINITION,
        "tensors": fingerprints(model, tensors, known=known),
        "modules": {name: repr(module) for name, module in below.items()},
        "modes": {name: [m.training for m in top.modules()] for name, top in below.items()},
        "attributes": {name: _plain(module) for name, module in below.items()},
        "source": _source(below.values()),
        "calls": [f"{call.module}#{call.visit}" for call in boundary.calls],
        "added": [
            [*place, _as_data(getattr(model.get_submodule(place[0]), place[1], None))]
            for place in sorted(name for name in boundary.added if isinstance(name, tuple))
        ],
        "computing": _computing(next(model.parameters()).device),
    }


def network_key(model: nn.Module, more: Mapping[str, str]) -> str:
    """Return a hash of all that trials of `model` depend on besides the values of tensors."""
    # Trials run the whole network. So they depend on its trained part too, but not on its values.
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


def prefix_key(model: nn.Module, facts: Facts) -> str:
    """Return a hash of all that the frozen outputs of a sample depend on in evaluation mode.

    It is the same for all splits and all data, so that rows of one can answer for the same sample
    in another. Rows of training mode may be others all the same: some of each store are compared.
    `facts` are from `facts_of`, and may have been taken in training mode.
    """
    kept = {name: fact for name, fact in facts.items() if name not in ("snapshot", "modes")}
    around = {"module": repr(model), "around": _plain(model), "code": _source([model])}
    return key_of({"of": kept, "in": around})


def _computing(device: torch.device) -> Facts:
    """Return what affects rounding besides the network: torch's version, the machine, settings."""
    facts: Facts = {
        "torch": torch.__version__,
        # Threads share the terms of a sum, so their number affects rounding.
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
    """Return the model of the CPU: libraries choose kernels by it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        # The last two fields exist on ARM.
        told = [line for line in lines if line.startswith(_PROCESSOR)]
        if told:
            return ", ".join(sorted({line.partition(":")[2].strip() for line in told}))
    return platform.processor()


def _plain(top: nn.Module) -> list[Facts]:
    """Return the plain attributes of a module and its submodules, such as `config`."""
    return [
        {name: _as_data(value) for name, value in vars(module).items() if name not in _LEFT_OUT}
        for module in top.modules()
    ]


def _as_data(value: Any, leaf: Callable[[Any], Any] | None = None) -> Any:
    """Return JSON data that differs when the value does, as far as its type is known."""
    # A list may contain itself.
    return folded(value, leaf or _leaf_as_data, _joined, into=DATA, again=lambda _: "itself")


def _joined(container: Any, parts: Sequence[Any]) -> Any:
    if isinstance(container, Mapping):
        return {str(key): part for key, part in zip(container, parts, strict=True)}
    return list(parts)


def _leaf_as_data(value: Any) -> Any:
    """Return JSON data for a value that is no list, tuple, set or mapping; see `_as_data`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | torch.dtype | torch.device | slice):
        # As text, since NaN is not equal to itself.
        return repr(value)
    match value:
        case Tensor():
            return fingerprint(value)
        case np.ndarray():
            return [value.dtype.str, value.shape, blake2b(value.tobytes()).hexdigest()]
        case np.generic():
            return _leaf_as_data(value.item())
        case set() | frozenset():
            return sorted(map(repr, value))
        # Modules are already described by `repr`, source and tensors.
        case nn.Module():
            return None
    return _object_as_data(value)


def _object_as_data(value: Any) -> Any:
    """Return the settings of a config; the name of a function, or of the type of other objects."""
    # For configs of `transformers`.
    if callable(to_dict := getattr(value, "to_dict", None)):
        plain = json.loads(json.dumps(to_dict(), sort_keys=True, default=str))
        # The path of a network does not matter. Its attention kernel does, and `to_dict` lacks it.
        told = {key: item for key, item in plain.items() if not key.endswith("name_or_path")}
        return told | {"kernel": getattr(value, "_attn_implementation", None)}
    named = (
        value if hasattr(value, "__qualname__") and hasattr(value, "__module__") else type(value)
    )
    return f"{named.__module__}.{named.__qualname__}"


def _source(modules: Any) -> str:
    """Return a hash of the source code of all classes in the frozen prefix, where available.

    The whole file of a class is hashed: it also holds functions that its methods call, and
    `inspect.getsource` of a class is slower than hashing its file.
    """
    classes = {type(inner) for module in modules for inner in module.modules()}
    digest = blake2b(digest_size=16)
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
    for name in sorted({kind.__module__ for kind in classes}):
        # Classes defined in a notebook have no file.
        with suppress(OSError, TypeError, KeyError):
            digest.update(inspect.getsource(sys.modules[name]).encode())
    return digest.hexdigest()


class Snapshot(NamedTuple):
    """Frozen outputs of a few samples, and the operations that lead to the frozen calls.

    Rows also depend on code around the modules: its numbers, its mode, its order. The values show
    a change that affects these samples; the steps show one that affects other samples only.
    """

    values: Mapping[str, str]
    """Fingerprints of the outputs of frozen calls. Empty on other devices than a CPU, where two
    passes may differ in bits."""
    steps: Sequence[Any]
    """Functions that lead to the frozen calls, then these calls, with their plain arguments."""


def take_snapshot(
    model: nn.Module, boundary: Boundary, inputs: Inputs, *, is_training: bool
) -> Snapshot:
    """Run a few samples and return their snapshot.

    The network is restored afterwards, apart from plain attributes.
    """
    with in_mode(model, is_training=is_training), torch.enable_grad():
        seen = watch_around(model, inputs, boundary.places)
    leading: dict[int, Operation] = {}
    for place in seen.entrances:
        leading |= {id(one): one for one in seen.leading_to(place)[1]}
    done = [(one.name, one.arguments) for one in leading.values()]
    done += [(place[0], entrance.arguments) for place, entrance in seen.entrances.items()]
    on_cpu = next(model.parameters()).device.type == "cpu"
    return Snapshot(
        hashed(
            {
                f"{place[0]}#{place[1]}.{number}": tensor
                for place, call in seen.given.items()
                for number, tensor in enumerate(call.tensors)
            }
            if on_cpu
            else {}
        ),
        [[name, _without_values(list(arguments))] for name, arguments in done],
    )


def _without_values(arguments: Any) -> Any:
    """Return arguments as JSON data, without the values of tensors: those depend on the samples."""
    return _as_data(
        arguments, lambda leaf: "Tensor" if isinstance(leaf, Tensor) else _leaf_as_data(leaf)
    )
