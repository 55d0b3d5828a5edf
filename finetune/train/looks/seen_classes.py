"""What an evaluation has seen of one class per sample, and the pictures of it.

Letters: B samples of a batch, N of the split, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.pictures.calibration import bins_of, draw_calibration
from finetune.pictures.class_scores import draw_class_scores, scores_of
from finetune.pictures.confusion import draw_confusion
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, ShownSample, draw_samples
from finetune.tasks.cross_entropies import class_logits
from finetune.train.looks.seen import MOST_CURVES, MOST_SCORES, Curve, Inputs


@dataclass(slots=True)
class SeenClasses:
    """One class per sample."""

    names: Sequence[str]
    _scores: list[Tensor] = field(default_factory=list)
    """Probabilities `(B, C)`; only while they are few."""
    _rows: list[Tensor] = field(default_factory=list)
    """Position, true class, said class, its probability and that of the true class `(B, 5)`."""
    _kept: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, C)`, or one logit for two classes."""
        logits = class_logits(outputs, self.names)
        target = batch.target
        if target is None or target.ndim != 1 or logits.shape[1:] != (len(self.names),):
            raise ValueError("no logit for each class")
        shares = logits.float().softmax(1)
        best, said = shares.max(1)
        true = shares.gather(1, target[:, None]).squeeze(1)
        # In float64 on the CPU: Apple's GPUs have none, and float32 rounds large positions.
        each = (batch.indices, target, said, best, true)
        self._rows.append(torch.stack([one.cpu().double() for one in each], 1))
        self._kept += shares.numel()
        if self._kept <= MOST_SCORES:
            self._scores.append(shares.cpu())
        else:
            self._scores.clear()

    def shown(self) -> Sequence[int]:
        """Return the most wrong and the least certain samples."""
        return [int(row[0]) for row in (*self._wrong(), *self._unsure())]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return confusion, scores of classes, calibration and samples."""
        rows = self._all()
        size = len(self.names)
        flat = rows[:, 1].astype(int) * size + rows[:, 2].astype(int)
        counts = np.bincount(flat, minlength=size * size).reshape(size, size)
        is_right = rows[:, 1] == rows[:, 2]
        of = f"of {len(rows):,} validation samples"
        wrong = [self._sample(row, show) for row in self._wrong()]
        unsure = [self._sample(row, show) for row in self._unsure()]
        samples = {
            "most_wrong": draw_samples(wrong, f"most wrong {of}"),
            "least_certain": draw_samples(unsure, f"least certain {of}"),
        }
        return {
            "confusion": draw_confusion(counts, self.names),
            "classes": draw_class_scores(*scores_of(counts), self.names),
            "calibration": draw_calibration(bins_of(rows[:, 3], is_right)),
            **{name: picture for name, picture in samples.items() if len(picture.shapes) > 1},
        }

    def curves(self) -> list[Curve]:
        """Return a curve for each of the classes with the most samples."""
        if not self._scores:
            return []
        scores, true = torch.cat(self._scores).numpy(), self._all()[:, 1].astype(int)
        support = np.bincount(true, minlength=len(self.names))
        # In the order of the classes; of two classes, the second alone.
        most = sorted(np.argsort(-support, kind="stable")[:MOST_CURVES].tolist())
        most = [1] if len(self.names) == 2 else most
        return [Curve(self.names[n], true == n, scores[:, n]) for n in most]

    def _all(self) -> np.ndarray:
        rows: np.ndarray = torch.cat(self._rows).numpy()
        return rows

    def _wrong(self) -> np.ndarray:
        """Return the rows of wrong samples, the smallest probability of the true class first."""
        rows = self._all()
        wrong = rows[rows[:, 1] != rows[:, 2]]
        worst: np.ndarray = wrong[np.argsort(wrong[:, 4], kind="stable")[:MOST_SHOWN]]
        return worst

    def _unsure(self) -> np.ndarray:
        """Return the rows with the smallest probability of what was said, right or wrong."""
        rows = self._all()
        return rows[np.argsort(rows[:, 3], kind="stable")[:MOST_SHOWN]]

    def _sample(self, row: np.ndarray, show: Mapping[int, Inputs]) -> ShownSample:
        """Return a sample with what was said of it."""
        number, true, said = (int(value) for value in row[:3])
        inputs = show[number]
        return ShownSample(
            f"{self.names[said]} ({row[3]:.0%})",
            f"{self.names[true]} ({row[4]:.0%})",
            f"sample {number}",
            is_right=true == said,
            pixels=inputs.pixels,
            words=inputs.words,
        )
