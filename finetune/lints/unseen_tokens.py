"""Find by running a network whether layers see padding, and a first token the others.

Letters: B samples, T tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.data.batches import Samples
from finetune.models.parts import FirstToken
from finetune.module_calls import Call, watched
from finetune.structure import tensors_in

Inputs = dict[str, Tensor]

_LOOKED_AT = 256
"""Number of samples to search for one that is padded."""
_MOST_PADDING = 64
"""Upper bound on the padding that is tried, in tokens."""
_TOLERANCE = 1e-3
"""Relative change of an output, by its largest value, that is more than rounding."""


class SeenPadding(NamedTuple):
    """A module whose output for a sample changes with the padding behind it."""

    module: str
    tokens: int
    """Number of tokens of the sample."""
    filled_up_to: int
    """Number of tokens with padding."""
    change: float
    """Relative change of the network's output, by its largest value."""


def seen_padding(
    model: nn.Module, samples: Samples, placed: Callable[[Inputs], Inputs]
) -> SeenPadding | None:
    """Return the first module that sees padding; None if the network's output does not change.

    Args:
        model: The network, in evaluation mode.
        samples: The training samples.
        placed: Moves the inputs of a batch to the device of the network.
    """
    found = _short_sample(samples)
    if found is None:
        return None
    row, tokens, width = found
    rows = torch.tensor([row, row])  # one sample alone may run by other kernels
    alone, padded = (
        placed(samples.fetch(rows, length=length).inputs) for length in (tokens, width)
    )
    with watched(model) as calls:
        one = model(**alone)
    with watched(model) as calls_padded:
        other = model(**padded)
    change = max(map(_change, tensors_in(one), tensors_in(other)), default=0.0)
    if change <= _TOLERANCE:
        return None
    module = _first_changed(calls[0], calls_padded[0], tokens, width)
    return SeenPadding(module, tokens, width, change)


def _short_sample(samples: Samples) -> tuple[int, int, int] | None:
    """Return row and tokens of a short sample, and the length to pad it to; None without one."""
    count = min(len(samples), _LOOKED_AT)
    lengths = samples.lengths(torch.arange(count))
    if lengths is None:
        return None
    known = [(length, row) for row, length in enumerate(lengths.tolist())]
    # A sample without tokens has no output to compare.
    tokens, row = min(each for each in known if each[0] > 0)
    width = min(max(known)[0], tokens + _MOST_PADDING)
    return (row, tokens, width) if width > tokens else None


def _first_changed(alone: Call, padded: Call, tokens: int, width: int) -> str:
    """Return the first module whose outputs differ between both passes; empty if there is none."""
    for one, other in zip(_by_end(alone), _by_end(padded), strict=False):
        if one.module != other.module:
            # From here on the passes call different modules, so outputs cannot be compared.
            break
        pairs = zip(one.tensors, other.tensors, strict=False)
        if any(
            _change(mine, _cut(theirs, mine, tokens, width)) > _TOLERANCE for mine, theirs in pairs
        ):
            return one.module
    return ""


def _by_end(call: Call) -> list[Call]:
    """Return a call and all calls below it, in the order in which they ended."""
    return [*(inner for child in call.children for inner in _by_end(child)), call]


def _cut(padded: Tensor, alone: Tensor, tokens: int, width: int) -> Tensor:
    """Return an output without padding: axes of the padded length are cut to the sample's."""
    if padded.ndim != alone.ndim:
        return padded
    for axis, (long, short) in enumerate(zip(padded.shape, alone.shape, strict=True)):
        if (long, short) == (width, tokens):
            padded = padded.narrow(axis, 0, tokens)
    return padded


def _change(one: Tensor, other: Tensor) -> float:
    """Return the largest difference by the largest value; 0 for what cannot be compared."""
    if one.shape != other.shape or not one.is_floating_point() or not one.numel():
        return 0.0
    difference = (one.double() - other.double()).abs().max()
    return float(difference / one.double().abs().max().clamp(min=1e-12))


def blind_first_tokens(model: nn.Module, inputs: Inputs) -> list[str]:
    """Return the names of pooling modules whose first token sees no token behind it.

    All tokens of a sample but the first are changed: the state of the first token changes in an
    encoder, and stays the same in a decoder.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch.
    """
    pooling = [name for name, module in model.named_modules() if isinstance(module, FirstToken)]
    ids = inputs.get("input_ids")
    if not pooling or ids is None or ids.ndim != 2 or ids.shape[1] < 2:
        return []
    changed = ids.clone()
    # The id of the first token, or zero where that one is there already: every table has both.
    changed[:, 1:] = torch.where(ids[:, 1:] != ids[:, :1], ids[:, :1], 0)
    # All ones: a masked token could not reach the first one in an encoder either.
    mask = {} if "attention_mask" not in inputs else {"attention_mask": torch.ones_like(ids)}
    states = [
        _states(model, pooling, inputs | mask | {"input_ids": tokens}) for tokens in (ids, changed)
    ]
    return [name for name in pooling if _change(states[0][name], states[1][name]) == 0]


def _states(model: nn.Module, names: list[str], inputs: Inputs) -> dict[str, Tensor]:
    """Run the network; return copies of the first outputs of the named modules."""
    with watched(model) as roots:
        model(**inputs)
    calls = [call for root in roots for call in root.walk() if call.module in names]
    return {call.module: call.tensors[0].clone() for call in calls}
