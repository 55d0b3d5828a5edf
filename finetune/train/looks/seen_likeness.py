"""What an evaluation has seen of pairs and triplets, and the pictures of it.

Letters: B samples of a batch, N of the split, D numbers of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config.task_keys import SimilarityTask
from finetune.data.batches import Batch
from finetune.pictures.beside_targets import draw_beside_targets
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, ShownSample, draw_samples
from finetune.tasks.similarity import cosines_and_scores, embeddings
from finetune.train.looks.seen import Curve, Inputs
from finetune.train.looks.seen_rows import SeenNumbers

_MOST_NUMBERS = 2_000_000
"""Numbers of embeddings that are kept: each pair is compared with all others."""
_ROWS = 1000
"""Samples that are compared with all others at once."""


@dataclass(slots=True)
class SeenScores:
    """Pairs, each with the cosine that it shall have."""

    config: SimilarityTask
    _numbers: SeenNumbers = field(default_factory=lambda: SeenNumbers(("cosine of a pair",)))

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take embeddings `(B, 2, D)`; see `SeenNumbers`."""
        cosines, scores = cosines_and_scores(self.config.score_range, outputs, batch)
        self._numbers.add(cosines, replace(batch, target=scores))

    def shown(self) -> Sequence[int]:
        """Return the pairs with the largest errors."""
        return self._numbers.shown()

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return cosines beside scores, and the most wrong pairs."""
        return self._numbers.pictures(show)

    def curves(self) -> list[Curve]:
        """Return none."""
        return []


@dataclass(slots=True)
class SeenPartners:
    """Samples with one that belongs to each; in triplets, also with one that does not."""

    has_other: bool
    """Whether they are triplets."""
    _kept: list[Tensor] = field(default_factory=list)
    """Embeddings of length 1, `(B, 2, D)` or `(B, 3, D)`."""
    _indices: list[int] = field(default_factory=list)
    _compared: tuple[np.ndarray, np.ndarray] | None = None
    """Result of `_cosines` for all samples, once it was asked for."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take embeddings `(B, 2, D)` or `(B, 3, D)`.

        Raises:
            ValueError: they are of another form, or too many to be compared with each other.
        """
        found = F.normalize(embeddings(3 if self.has_other else 2, outputs), dim=2)
        self._kept.append(found.cpu())
        self._indices += batch.indices.tolist()
        self._compared = None
        if sum(each.numel() for each in self._kept) > _MOST_NUMBERS:
            raise ValueError(f"they are more than {_MOST_NUMBERS:,} numbers")

    def shown(self) -> Sequence[int]:
        """Return the samples whose partner is further away than another one, the worst first."""
        own, other = self._cosines()
        return [self._indices[row] for row in self._wrong(own, other)]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return cosines of partners beside those of others, and the most wrong samples.

        A single pair has no others to be compared with, and no picture.
        """
        own, other = self._cosines()
        if len(own) == 1 and not self.has_other:
            return {}
        name = "above the line: the right one is nearer"
        of_other = "cosine of the other" if self.has_other else "cosine of the nearest other"
        worst = [
            ShownSample(
                f"cosine {other[row]:.3f} with another",
                f"cosine {own[row]:.3f} with its own",
                f"sample {self._indices[row]}",
                pixels=show[self._indices[row]].pixels,
                words=show[self._indices[row]].words,
            )
            for row in self._wrong(own, other)
        ]
        heading = f"most wrong of {len(own):,} validation samples"
        return {
            "targets": draw_beside_targets(own, other, name, ("cosine of its own", of_other)),
            **({"most_wrong": draw_samples(worst, heading)} if worst else {}),
        }

    def curves(self) -> list[Curve]:
        """Return none."""
        return []

    def _cosines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosine of each sample with its own partner and with another, `(N,)` each.

        Of pairs the other is the nearest partner of all other samples.
        """
        # Each with all others takes long, and both the choice of samples and the picture need it.
        if self._compared is None:
            self._compared = self._compare()
        return self._compared

    def _compare(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute what `_cosines` returns."""
        found = torch.cat(self._kept)
        first, own = found[:, 0], found[:, 1]
        of_own = (first * own).sum(1)
        if self.has_other:
            return of_own.numpy(), (first * found[:, 2]).sum(1).numpy()
        nearest = []
        for begin in range(0, len(first), _ROWS):
            cosines = first[begin : begin + _ROWS] @ own.T
            rows = torch.arange(len(cosines))
            # Its own partner is no other one, and would most often be the nearest.
            cosines[rows, begin + rows] = -torch.inf
            nearest.append(cosines.amax(1))
        return of_own.numpy(), torch.cat(nearest).numpy()

    def _wrong(self, own: np.ndarray, other: np.ndarray) -> list[int]:
        """Return the rows where another one is at least as near, the largest gap first."""
        gap = np.nan_to_num(other - own, nan=np.inf)
        order = np.argsort(-gap, kind="stable")
        worst: list[int] = order[gap[order] >= 0][:MOST_SHOWN].tolist()
        return worst
