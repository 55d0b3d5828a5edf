"""Find by running a network whether the output for a sample depends on the others of its batch.

Letters: B samples of a batch.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from finetune.config.model import Layer
from finetune.module_calls import Call, watched
from finetune.structure import tensors_in

FEW, FEWER = 4, 2
"""Samples in the two batches that are compared: two at least, as one may run by other kernels."""
_TOLERANCE = 1e-3
"""Relative change of an output, by its largest value, that is more than rounding."""
_ALONE = frozenset({
    "transformers", "timm", "torchvision", "Linear", "Embedding", "Dropout", "Identity", "ReLU",
    "GELU", "Tanh", "SiLU", "Conv1d", "Conv2d", "LayerNorm", "affine",
})  # fmt: skip
"""Layers that are known to keep samples apart: a network of these alone need not be run."""

_MOST_BYTES = 2**28
"""Parameters of a network that is looked at again in float64, which takes three times as much."""


class Mixed(NamedTuple):
    """A module whose output for a sample changes with the others of the batch."""

    module: str
    """Full name of the first such module; "" if it is none of the network's modules."""
    change: float
    """Relative change of the network's output, by its largest value."""


def may_mix(layers: Sequence[Layer]) -> bool:
    """Tell whether a network has a layer that is not known to keep samples apart."""
    return any(layer.type not in _ALONE for layer in layers)


def mixed_samples(
    model: nn.Module, many: dict[str, Tensor], few: dict[str, Tensor]
) -> Mixed | None:
    """Return the first module that mixes the samples of a batch; None without one.

    Args:
        model: The network, in evaluation mode.
        many: The inputs of `FEW` samples.
        few: Those of the last `FEWER` of these, padded alike: a recurrent layer that runs over the
            samples shows nothing of what comes after.
    """
    with watched(model) as calls:
        whole = model(**many)
    with watched(model) as calls_of_few:
        part = model(**few)
    pairs = zip(tensors_in(whole), tensors_in(part), strict=False)
    change = max((_change(one, other) for one, other in pairs), default=0.0)
    if change <= _TOLERANCE or _draws(model, many, whole):
        return None
    if _is_rounding(model, many, few, _differences(whole, part)):
        return None
    return Mixed(_first_changed(calls[0], calls_of_few[0]), change)


def _draws(model: nn.Module, many: dict[str, Tensor], whole: Any) -> bool:
    """Tell whether the network gives other outputs for the same batch, as one that draws does."""
    again = (tensor[-FEWER:] if tensor.ndim else tensor for tensor in tensors_in(model(**many)))
    pairs = zip(tensors_in(whole), again, strict=False)
    return any(_change(one, other) > _TOLERANCE for one, other in pairs)


def _is_rounding(
    model: nn.Module,
    many: dict[str, Tensor],
    few: dict[str, Tensor],
    differences: Sequence[float],
) -> bool:
    """Tell whether the outputs for the same samples differ by the rounding of the network alone.

    Outputs that are rounding noise around 0 differ wholly from batch to batch. How large the noise
    is follows from the largest numbers within the network and from what its layers make of them,
    such as a norm of constant rows. In float64 the same noise is 2^29 times smaller; a difference
    by the company of a sample stays.

    Args:
        model: The network; a large one counts as exact, since its copy might not fit into memory.
        many: The larger batch.
        few: The smaller one.
        differences: How much the outputs for both differ, tensor by tensor.
    """
    if sum(tensor.nbytes for tensor in model.parameters()) > _MOST_BYTES:
        return False
    try:
        exact = copy.deepcopy(model).double()
        whole, part = ({name: _exact(x) for name, x in one.items()} for one in (many, few))
        again = _differences(exact(**whole), exact(**part))
    except Exception:  # noqa: BLE001 - a module that takes no float64, or that cannot be copied
        return False
    # One by one: the noise of large outputs must not hide what small ones share.
    pairs = zip(again, differences, strict=True)
    return all(now <= _TOLERANCE * before for now, before in pairs)


def _exact(tensor: Tensor) -> Tensor:
    """Return numbers with a fraction in float64, others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _differences(whole: Any, part: Any) -> list[float]:
    """Return the largest difference between each two tensors of the outputs of both batches."""
    pairs = zip(tensors_in(whole), tensors_in(part), strict=False)
    return [_difference(one, other) for one, other in pairs]


def _first_changed(many: Call, few: Call) -> str:
    """Return the first module that ended with other values for the samples of both batches."""
    for one, other in zip(_by_end(many), _by_end(few), strict=False):
        if one.module != other.module:
            break
        pairs = zip(one.tensors, other.tensors, strict=False)
        if any(_change(mine, theirs) > _TOLERANCE for mine, theirs in pairs):
            return one.module
    return ""


def _by_end(call: Call) -> list[Call]:
    """Return a call and all calls below it, in the order in which they ended."""
    return [*(inner for child in call.children for inner in _by_end(child)), call]


def _change(many: Tensor, few: Tensor) -> float:
    """Return the largest difference for the samples of both, by the largest value."""
    difference = _difference(many, few)
    if not difference:
        return 0.0
    # An output that is 0 throughout has no size to measure a change by.
    return difference / max(float(many[-FEWER:].double().abs().nan_to_num(0.0).max()), 1e-12)


def _difference(many: Tensor, few: Tensor) -> float:
    """Return the largest difference for the samples of both; 0 for what has no samples first."""
    shapes = (FEW, *many.shape[1:]), (FEWER, *many.shape[1:])
    if (many.shape, few.shape) != shapes or not many.is_floating_point() or not few.numel():
        return 0.0
    # Where numbers are not finite, other checks tell.
    difference = many[-FEWER:].double() - few.double()
    return float(difference.abs().nan_to_num(0.0).max())
