"""Note on parts whose numbers to learn are in another unit than those of training.

Letters: N samples, D numbers of a sample.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_FAR = 3
"""Widths of training by which the median is away, before it is told."""
_WIDE = 10
"""Times that a width is larger before it is told."""
_NARROW = 100
"""Times that a width is smaller before it is told."""
_FEW = 5
"""Fewer samples may lie anywhere."""
_SHARES = (0.05, 0.5, 0.95)
"""Quantiles that are compared: one far number moves a mean or a deviation, but not these."""
_LOOKED_AT, _FEWEST = 100_000, 100
"""Most numbers of a part that are looked at, but so many samples at least."""


def notes_on_units(targets: Mapping[str, Tensor], name: str) -> list[str]:
    """Return a note for each part whose targets are of quite another size than those of training.

    Args:
        targets: The targets `(N, ...)` of each part.
        name: Name of the target column.
    """
    trained = targets["train"]
    parts = {p: target for p, target in targets.items() if p != "train" and len(target) >= _FEW}
    if not parts or len(trained) < _FEW or not trained.is_floating_point():
        return []
    there = _sizes(trained)
    notes = []
    for part, target in parts.items():
        here = _sizes(target)
        places = _unlike(here, there)
        if places:
            at = places[0]
            which = f"number {at} of column" if here.shape[1] > 1 else "column"
            notes.append(
                f"{which} {name!r} to learn: most are {here[1, at]:,.4g} to {here[3, at]:,.4g} in "
                f"the {part} part, {there[1, at]:,.4g} to {there[3, at]:,.4g} in training: are "
                "both in one unit?"
            )
    return notes


def _sizes(target: Tensor) -> Tensor:
    """Return the least of each number, those at `_SHARES`, and the largest, `(5, D)`."""
    most = max(_FEWEST, _LOOKED_AT // max(1, target[0].numel()))
    # At equal steps: a table may be in the order of its targets.
    some = target[:: -(-len(target) // most)]
    in_order = some.double().reshape(len(some), -1).sort(0).values
    return in_order[[round(share * (len(some) - 1)) for share in (0, *_SHARES, 1)]]


def _unlike(here: Tensor, there: Tensor) -> list[int]:
    """Return which numbers of a part are of another size than those of training."""
    least, low, middle, high, most = there.unbind()
    usual, width = high - low, here[3] - here[1]
    away = (here[2] - middle).abs() > _FAR * usual
    away &= (here[2] < least) | (here[2] > most)
    wide = width > torch.maximum(_WIDE * usual, most - least)
    narrow = (width > 0) & (width * _NARROW < usual)
    # A target that is constant in training has a note of its own.
    is_unlike = (away | wide | narrow) & (usual > 0)
    return is_unlike.nonzero().flatten().tolist()
