"""What a few samples show of a border: where that differs, another store is used."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.freezing.apply import in_mode
from finetune.freezing.proof import hashed
from finetune.prefix.around import watch_around
from finetune.prefix.faults import Inputs
from finetune.prefix.probe import Border
from finetune.prefix.trace import Operation


class Witness(NamedTuple):
    """What a few samples show of a border.

    Much comes into stored values that no parameter and no source of a module tells: what the code
    around does, with which numbers, in which mode and order. The values show it where it concerns
    these samples, the steps also where it is rare.
    """

    values: Mapping[str, str]
    """Fingerprints of what the frozen calls give. None off a CPU, where passes differ in bits."""
    steps: Sequence[str]
    """The functions outside that lead to frozen calls, and those, with their plain arguments."""


def take_witness(model: nn.Module, border: Border, inputs: Inputs, *, is_training: bool) -> Witness:
    """Run a few samples.

    Args:
        model: The network. Left as it was, but for plain attributes.
        border: Where its prefix ends.
        inputs: The samples, the same ones for all that are to be compared.
        is_training: Whether in training mode.
    """
    with in_mode(model, is_training=is_training), torch.enable_grad():
        seen = watch_around(model, inputs, border.places)
    leading: dict[int, Operation] = {}
    for place in seen.entrances:
        leading |= {id(one): one for one in seen.leading_to(place)[1]}
    done = [(one.name, one.arguments) for one in leading.values()]
    done += [(place[0], entrance.arguments) for place, entrance in seen.entrances.items()]
    on_cpu = next(model.parameters()).device.type == "cpu"
    return Witness(
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
    """Return arguments as words: of what is no number or word, its kind."""
    match value:
        case np.generic():
            return repr(value.item())
        case Tensor():
            return "Tensor"
        case None | bool() | int() | float() | complex() | str() | torch.dtype():
            return repr(value)
        case slice():
            return _in_words([value.start, value.stop, value.step])
        case Mapping():
            return _in_words(list(value.items()))
        case list() | tuple():
            return f"[{', '.join(map(_in_words, value))}]"
    return type(value).__name__
