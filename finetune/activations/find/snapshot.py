"""Fingerprint of the frozen outputs on a few samples per split; part of the cache key."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.activations.find.boundary import Boundary
from finetune.activations.find.checks import Inputs
from finetune.activations.find.surroundings import watch_around
from finetune.activations.find.trace import Operation
from finetune.freezing.apply import in_mode
from finetune.freezing.proof import hashed
from finetune.structure import folded


class Snapshot(NamedTuple):
    """Frozen outputs of a few samples, and the operations that lead to the frozen calls.

    Rows also depend on code around the modules: its numbers, its mode, its order. The values show
    a change that affects these samples; the steps show one that affects other samples only.
    """

    values: Mapping[str, str]
    """Fingerprints of the outputs of frozen calls. Empty on other devices than a CPU, where two
    passes may differ in bits."""
    steps: Sequence[str]
    """Functions that lead to the frozen calls, then these calls, with their plain arguments."""


def take_snapshot(
    model: nn.Module, boundary: Boundary, inputs: Inputs, *, is_training: bool
) -> Snapshot:
    """Run a few samples and return their snapshot.

    Args:
        model: The network. It is restored afterwards, apart from plain attributes.
        boundary: Its boundary.
        inputs: The samples; the same ones for all snapshots that are compared.
        is_training: Whether to run in training mode.
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
        [f"{name} {_in_words(list(arguments))}" for name, arguments in done],
    )


def _in_words(value: Any) -> str:
    """Return arguments as text: values of numbers and strings, else the type."""
    return folded(value, _leaf_in_words, _joined, into=(Mapping, list, tuple))


def _leaf_in_words(value: Any) -> str:
    match value:
        case np.generic():
            return repr(value.item())
        case Tensor():
            return "Tensor"
        case None | bool() | int() | float() | complex() | str() | torch.dtype():
            return repr(value)
        case slice():
            return _in_words([value.start, value.stop, value.step])
    return type(value).__name__


def _joined(container: Any, parts: Sequence[str]) -> str:
    if isinstance(container, Mapping):
        keys = map(_in_words, container)
        parts = [f"[{key}, {part}]" for key, part in zip(keys, parts, strict=True)]
    return f"[{', '.join(parts)}]"
