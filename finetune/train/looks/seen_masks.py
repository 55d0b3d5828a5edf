"""What an evaluation has seen of a class per pixel, and the pictures of it.

Letters: B samples of a batch, N pixels, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from finetune.data.batches import Batch
from finetune.data.media.pixel_classes import IGNORED
from finetune.pictures.class_scores import draw_class_scores, scores_of
from finetune.pictures.confusion import draw_confusion
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import (
    MOST_SHOWN,
    ShownSample,
    colours_of_classes,
    draw_samples,
)
from finetune.tasks.segmentation import pixel_logits
from finetune.train.looks.seen import Curve, Inputs


class _Mask(NamedTuple):
    """A sample with its masks of class numbers `(H, W)`."""

    right: float
    number: int
    said: np.ndarray
    so: np.ndarray


def confusion(target: Tensor, said: Tensor, size: int) -> np.ndarray:
    """Count the pairs of right class and given class.

    Args:
        target: The right classes `(N,)`, whole numbers below `size`.
        said: The classes that the network gave, `(N,)`.
        size: How many classes there are, C.

    Returns:
        Counts `(C, C)`, a row for each right class.
    """
    return (target * size + said).bincount(minlength=size * size).reshape(size, size).cpu().numpy()


@dataclass(slots=True)
class SeenMasks:
    """A class for each pixel."""

    names: Sequence[str]
    _worst: list[_Mask] = field(default_factory=list)
    _counts: np.ndarray | None = None
    _num: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, C, H, W)`."""
        target = batch.target
        if target is None or target.ndim != 3:
            raise ValueError("no class for each pixel")
        said = pixel_logits(self.names, outputs, tuple(target.shape[1:])).argmax(1)
        has_class = target != IGNORED
        counts = confusion(target[has_class], said[has_class], len(self.names))
        self._counts = counts if self._counts is None else self._counts + counts
        self._num += len(batch)
        right = ((said == target) & has_class).flatten(1).sum(1) / has_class.flatten(1).sum(1)
        rows = zip(right.tolist(), batch.indices.tolist(), said.cpu(), target.cpu(), strict=True)
        # A sample without a class has nothing to be wrong about.
        found = [_Mask(r, n, a.numpy(), b.numpy()) for r, n, a, b in rows if r == r]
        self._worst = sorted([*self._worst, *found], key=lambda mask: mask[:2])[: MOST_SHOWN // 2]

    def shown(self) -> Sequence[int]:
        """Return the samples with the smallest share of right pixels."""
        return [mask.number for mask in self._worst]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return the confusion of pixels, the scores of classes, and the worst masks."""
        assert self._counts is not None
        size = len(self.names)
        worst = [
            ShownSample(
                f"the right mask: {mask.right:.1%} of pixels right",
                "the middle mask",
                f"sample {mask.number}",
                pixels=(
                    *show[mask.number].pixels,
                    *(colours_of_classes(each, size) for each in (mask.so, mask.said)),
                ),
            )
            for mask in self._worst
        ]
        heading = f"worst of {self._num:,} validation samples"
        return {
            "confusion": draw_confusion(self._counts, self.names),
            "classes": draw_class_scores(*scores_of(self._counts), self.names),
            "most_wrong": draw_samples(worst, heading),
        }

    def curves(self) -> list[Curve]:
        """Return none: pixels are too many."""
        return []
