"""What an evaluation has seen of boxes in images, and the pictures of it.

Letters: B images of a batch, D detections of an image, K boxes of an image.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from finetune.data.batches import Batch
from finetune.models.detectors import NO_BOX
from finetune.pictures.class_scores import draw_class_scores
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, Outline, ShownSample, draw_samples
from finetune.tasks.detection import detections_of
from finetune.train.looks.seen import Curve, Inputs

_OVERLAP = 0.5
"""Share that a predicted box must have in common with a true one of its class to be right."""
_MOST_OUTLINES = 30


class _Image(NamedTuple):
    """An image with boxes, x1, y1, x2, y2 and class each."""

    right: float
    """Boxes that are right among all, predicted and true, from 0 to 1."""
    number: int
    said: np.ndarray
    so: np.ndarray


@dataclass(slots=True)
class SeenBoxes:
    """Boxes, each with a class; those count that are as probable as the task asks."""

    names: Sequence[str]
    threshold: float
    _worst: list[_Image] = field(default_factory=list)
    _hits: Counter[int] = field(default_factory=Counter)
    _said: Counter[int] = field(default_factory=Counter)
    _true: Counter[int] = field(default_factory=Counter)
    _num: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take detections `(B, D, 6)`.

        Raises:
            ValueError: they are of another form.
        """
        found = detections_of(outputs).detach().float().cpu().numpy()
        if batch.target is None or batch.target.ndim != 3:
            raise ValueError("no boxes for each image")
        self._num += len(batch)
        rows = zip(batch.indices.tolist(), found, batch.target.cpu().numpy(), strict=True)
        for number, each, boxes in rows:
            kept = each[(each[:, 5] != NO_BOX) & (each[:, 4] >= self.threshold)]
            # `matched` lets the most probable box choose first, whatever the network's order.
            said = kept[np.argsort(-kept[:, 4], kind="stable")][:, [0, 1, 2, 3, 5]]
            so = boxes[boxes[:, 4] != NO_BOX]
            hits = matched(said, so)
            self._hits.update(said[hits, 4].astype(int).tolist())
            self._said.update(said[:, 4].astype(int).tolist())
            self._true.update(so[:, 4].astype(int).tolist())
            if total := len(said) + len(so):
                self._worst.append(_Image(2 * len(hits) / total, number, said, so))
        # Not by the whole tuple: arrays cannot be put in order.
        self._worst = sorted(self._worst, key=lambda one: one[:2])[:MOST_SHOWN]

    def shown(self) -> Sequence[int]:
        """Return the images with the smallest share of right boxes."""
        return [one.number for one in self._worst]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return precision and recall of each class, and images with both kinds of boxes."""
        classes = range(len(self.names))
        hits, said, support = (
            np.array([counts[n] for n in classes], dtype=np.float64)
            for counts in (self._hits, self._said, self._true)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = hits / said, hits / support
        heading = f"worst of {self._num:,}; thick: is, thin: said, from {self.threshold:g} on"
        worst = [self._sample(one, show[one.number]) for one in self._worst]
        return {
            "classes": draw_class_scores(precision, recall, support.astype(int), self.names),
            **({"targets": draw_samples(worst, heading)} if worst else {}),
        }

    def curves(self) -> list[Curve]:
        """Return none: what is no box has no number."""
        return []

    def _sample(self, one: _Image, inputs: Inputs) -> ShownSample:
        return ShownSample(
            self._counted(one.said),
            self._counted(one.so),
            f"sample {one.number}: {one.right:.0%} of boxes right",
            is_right=one.right == 1,
            pixels=inputs.pixels[:1],
            words=inputs.words,
            outlines=[
                Outline(
                    (float(row[0]), float(row[1]), float(row[2]), float(row[3])),
                    self.names[int(row[4])],
                    is_said,
                )
                for is_said, rows in ((False, one.so), (True, one.said))
                for row in rows[:_MOST_OUTLINES]
            ],
        )

    def _counted(self, boxes: np.ndarray) -> str:
        """Return how many boxes there are of each class, as text."""
        counts = Counter(boxes[:, 4].astype(int).tolist())
        each = [f"{count} {self.names[number]}" for number, count in sorted(counts.items())]
        return ", ".join(each) or "no box"


def matched(said: np.ndarray, so: np.ndarray) -> list[int]:
    """Return which predicted boxes are right: each takes the free true one it overlaps most.

    Args:
        said: Predicted boxes, the most probable first: x1, y1, x2, y2, class, `(D, 5)`.
        so: True ones, `(K, 5)`.
    """
    free, found = np.ones(len(so), dtype=bool), []
    for number, box in enumerate(said):
        shared = np.where(free & (so[:, 4] == box[4]), overlaps(box, so), 0.0)
        if len(so) and shared.max() >= _OVERLAP:
            free[shared.argmax()] = False
            found.append(number)
    return found


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return area in common / area of both together, of one box and each of others `(K,)`."""
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    common = (corners[1] - corners[0]).clip(0).prod(1)
    own, theirs = (box[2:4] - box[:2]).prod(), (others[:, 2:4] - others[:, :2]).prod(1)
    # Two boxes without area have nothing to divide by.
    shares: np.ndarray = common / np.maximum(own + theirs - common, 1e-12)
    return shares
