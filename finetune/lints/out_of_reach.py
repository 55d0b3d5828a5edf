"""Find a squashing function before numbers to learn that lie beyond its range."""

from math import inf
from typing import NamedTuple

from torch import Tensor, nn

from finetune.lints.last_operation import Squashing, last_operation

_RANGES: dict[Squashing, tuple[float, float]] = {
    "softmax": (0, 1),
    "sigmoid": (0, 1),
    "log-softmax": (-inf, 0),
    "log-sigmoid": (-inf, 0),
    "ReLU": (0, inf),
    "tanh": (-1, 1),
    "softsign": (-1, 1),
}
"""Values that functions can give. Those of a hardtanh are its own, and not known here."""


class OutOfReach(NamedTuple):
    """A squashing function before targets that it cannot give."""

    module: str
    """Full name of the module that returned its values."""
    told: str
    """What it gives, and what is to be learned; to be said of the module."""


def out_of_reach(model: nn.Module, inputs: dict[str, Tensor], target: Tensor) -> OutOfReach | None:
    """Return the function behind which some targets cannot be reached; None without one.

    Args:
        model: The network, in evaluation mode. It has one output.
        inputs: A batch of at least three samples.
        target: Numbers to learn, of these samples and others.
    """
    last = last_operation(model, inputs)
    # What only the values of a few samples suggest is no ground for such a claim.
    if last is None or last.is_guess or last.squashing not in _RANGES or not target.numel():
        return None
    low, high = _RANGES[last.squashing]
    is_beyond = (target < low) | (target > high)
    if not is_beyond.any():
        return None
    count = int(is_beyond.reshape(len(target), -1).any(1).sum())
    told = (
        f"gives values {_in_words(low, high)}, by a {last.squashing}, and {count:,} of "
        f"{len(target):,} samples looked at have a target beyond: it is never reached"
    )
    return OutOfReach(last.module, told)


def _in_words(low: float, high: float) -> str:
    """Return a range as text."""
    if low == -inf:
        return f"up to {high:g}"
    return f"from {low:g} on" if high == inf else f"from {low:g} to {high:g}"
