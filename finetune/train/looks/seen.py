"""What collects an evaluation, sample by sample, for the pictures of it.

Each form of target has a class of its own: `SeenClasses`, `SeenLabels`, `SeenNumbers`, `SeenMasks`,
`SeenTags`, `SeenAnswers`, `SeenBoxes`; pairs have `SeenScores` and `SeenPartners`. Each takes
outputs and batches as they come, and keeps a few numbers per sample.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from finetune.data.batches import Batch
from finetune.pictures.drawing import Picture

MOST_CURVES = 20
"""Classes with a precision-recall curve; of more, those with the most samples."""
MOST_SCORES = 4_000_000
"""Numbers kept for curves and the worst samples; of more samples there is neither."""
MOST_WORDS = 200
"""Words of a text that a picture gets; it draws those that have room."""


class Inputs(NamedTuple):
    """The inputs of a sample as a person sees them."""

    pixels: tuple[np.ndarray, ...]
    """Its images `(H, W, 3)` uint8, if it has any."""
    words: tuple[str, ...]
    """Its text, or the values of its columns."""


Show = Callable[[int], Inputs]
"""Returns the inputs of a sample, by its position in the split."""


class Curve(NamedTuple):
    """What the precision-recall curve of a class is made of, `(N,)` each."""

    name: str
    is_so: np.ndarray
    score: np.ndarray


class Seen(Protocol):
    """Collects an evaluation."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take the outputs of a batch.

        Raises:
            ValueError: they are of another form.
        """
        ...

    def shown(self) -> Sequence[int]:
        """Return the positions of the samples that the pictures show."""
        ...

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return pictures by name; `show` has the inputs of the samples of `shown`."""
        ...

    def curves(self) -> list[Curve]:
        """Return what precision-recall curves are made of; empty without any."""
        ...
