"""What a few samples show of a border: where that differs, another store is used."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.freezing.apply import mask_given_back
from finetune.freezing.proof import hashed
from finetune.prefix.exact import length_of
from finetune.prefix.outputs import tensors_in
from finetune.prefix.probe import Border
from finetune.prefix.replay import Replay
from finetune.prefix.state import undisturbed

Autocast = Callable[[], AbstractContextManager[object]]
Witness = dict[str, Any]
"""By mode: `values`, fingerprints by name of the output; `steps`, what ran around frozen calls."""


def witness(
    model: nn.Module, border: Border, inputs: Mapping[str, Tensor], autocast: Autocast
) -> Witness:
    """Return what a few samples show of a border, in training and in evaluation mode.

    Much comes into stored values that no parameter and no source of a module tells: what the code
    around does, with which numbers, in which mode and order. The values show it where it concerns
    these samples, the steps also where it is rare.

    Args:
        model: The network; left as it was.
        border: Where its prefix ends.
        inputs: A few samples, the same ones for all that are to be compared.
        autocast: The number format of the forward pass.
    """
    return {
        mode: _seen(model, border, inputs, autocast, is_training=mode == "training")
        for mode in ("training", "evaluation")
    }


def _seen(
    model: nn.Module,
    border: Border,
    inputs: Mapping[str, Tensor],
    autocast: Autocast,
    *,
    is_training: bool,
) -> Witness:
    replay, size = Replay(model, border), len(next(iter(inputs.values())))
    steps = _Steps(replay)
    # the network may change its inputs in place
    copies = {name: values.clone() for name, values in inputs.items()}
    replay.install()
    try:
        with mask_given_back(model), undisturbed(model, seed=0), torch.no_grad(), autocast():
            model.train(is_training)
            with replay.recording(size, length_of(inputs)) as rows, steps:
                model(**copies)
    finally:
        replay.remove()
    # elsewhere than on a CPU two passes may differ in bits
    on_cpu = next(model.parameters()).device.type == "cpu"
    return {"values": hashed(rows) if on_cpu else {}, "steps": steps.before_last_call}


class _Steps(TorchFunctionMode):
    """Notes the functions that run outside of frozen calls, with their plain arguments."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay, self._all, self._num = replay, list[str](), 0

    @property
    def before_last_call(self) -> list[str]:
        """Those that ran before the last frozen call."""
        return self._all[: self._num]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, and note it unless it only tells about a tensor."""
        result = func(*args, **(kwargs or {}))
        if not self._replay.is_between:
            self._num = len(self._all)
        elif tensors_in(result):
            self._all.append(f"{_name_of(func)} {_plain((*args, kwargs or {}))}")
        return result


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function; that of a property (`real`, `imag`) for what reads one."""
    return str(getattr(getattr(func, "__self__", None), "__name__", func.__name__))


def _plain(value: Any) -> str:
    """Return arguments as words: of what is no number or word, its kind."""
    match value:
        case None | bool() | int() | float() | complex() | str() | torch.dtype():
            return repr(value)
        case slice():
            return _plain((value.start, value.stop, value.step))
        case Mapping():
            return _plain([(key, item) for key, item in value.items()])
        case list() | tuple():
            return f"[{', '.join(map(_plain, value))}]"
    return type(value).__name__
