"""Note on parts whose numbers to learn are in another unit than those of training.

Letters: N samples, D numbers of a sample.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_FAR = 10
"""Deviations of training by which a mean, or a deviation, is larger before it is told."""
_NEAR = 100
"""Times that a deviation is smaller before it is told."""
_FEW = 5
"""Fewer samples may lie anywhere."""


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
    there = trained.double().reshape(len(trained), -1)
    notes = []
    for part, target in parts.items():
        here = target.double().reshape(len(target), -1)
        places = _unlike(here, there).nonzero().flatten().tolist()
        if places:
            at = places[0]
            which = f"number {at} of column" if here.shape[1] > 1 else "column"
            notes.append(
                f"{which} {name!r} to learn: mean {here[:, at].mean():,.4g} and standard deviation "
                f"{here[:, at].std():,.4g} in the {part} part, {there[:, at].mean():,.4g} and "
                f"{there[:, at].std():,.4g} in training: are both in one unit?"
            )
    return notes


def _unlike(here: Tensor, there: Tensor) -> Tensor:
    """Return which numbers of a part are of another size than those of training, `(D,)`."""
    usual = there.std(0)
    away = (here.mean(0) - there.mean(0)).abs() > _FAR * usual
    away &= (here.mean(0) < there.amin(0)) | (here.mean(0) > there.amax(0))
    wide = here.std(0) > torch.maximum(_FAR * usual, there.amax(0) - there.amin(0))
    narrow = (here.std(0) > 0) & (here.std(0) * _NEAR < usual)
    # What is constant in training is told as such.
    return (away | wide | narrow) & (usual > 0)
