"""Mean average precision of boxes, as COCO counts it, by torchmetrics and pycocotools.

Letters: B images, D detections of an image, K boxes of an image.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config.metric_keys import DetectionMetric
from finetune.data.batches import Batch
from finetune.importing import require
from finetune.models.detectors import NO_BOX
from finetune.tasks.conditions import Always
from finetune.tasks.metrics import Measure, target_of

_OVERLAPS, _RECALLS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
"""Those of COCO. The usual ones of torchmetrics are rounded to float32, 0.33 to 0.33000001, so that
a recall of 0.33 misses its own place on the curve."""
_UNDEFINED = -1
"""What pycocotools gives for a figure of no box."""


def box_measures(
    names: Sequence[DetectionMetric], detections: Callable[[Any], Tensor]
) -> tuple[Measure, ...]:
    """Return metrics of boxes; all of them share one count.

    Args:
        names: The figures.
        detections: Returns detections `(B, D, 6)` from what the network gives.
    """
    scores = BoxScores()

    def feed(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return detections(outputs), target_of(batch)

    return tuple(
        Measure(
            name,
            # The first one alone: each would add the same boxes once more.
            BoxMetric(name, scores, collects=number == 0),
            better="higher",
            new_condition=Always,
            feed=feed,
        )
        for number, name in enumerate(names)
    )


@dataclass(slots=True)
class BoxScores:
    """The detections and boxes of a split, and their figures once these were asked for."""

    _said: list[dict[str, Tensor]] = field(default_factory=list)
    _true: list[dict[str, Tensor]] = field(default_factory=list)
    _figures: dict[str, float] | None = None

    def add(self, detections: Tensor, boxes: Tensor) -> None:
        """Add a batch: detections `(B, D, 6)` and boxes `(B, K, 5)`."""
        # On the CPU, where pycocotools counts.
        for found, there in zip(detections.detach().float().cpu(), boxes.cpu(), strict=True):
            said, true = found[found[:, 5] != NO_BOX], there[there[:, 4] != NO_BOX]
            self._said.append(
                {"boxes": said[:, :4], "scores": said[:, 4], "labels": said[:, 5].long()}
            )
            self._true.append({"boxes": true[:, :4], "labels": true[:, 4].long()})
        self._figures = None

    def figure(self, name: str) -> float:
        """Return one figure of all batches; all of them are computed at once."""
        if self._figures is None:
            self._figures = self._counted()
        return self._figures[name]

    def forget(self) -> None:
        """Forget the batches."""
        self._said.clear()
        self._true.clear()
        self._figures = None

    def _counted(self) -> dict[str, float]:
        """Return all figures that are one number."""
        require("pycocotools", extra="vision")
        # It takes longer to load than torch, so only an evaluation of boxes loads it.
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(
            backend="pycocotools", iou_thresholds=_OVERLAPS, rec_thresholds=_RECALLS
        )
        # That an image has more than 100 detections, of which the metric counts the best.
        metric.warn_on_many_detections = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.update(self._said, self._true)
            found = metric.compute()
        return {name: float(value) for name, value in found.items() if value.numel() == 1}


@dataclass(slots=True)
class BoxMetric:
    """One figure of boxes.

    Args:
        name: The figure, as torchmetrics calls it.
        scores: What several figures share.
        collects: Whether this one feeds what they share.
    """

    name: str
    scores: BoxScores
    collects: bool

    def update(self, detections: Tensor, boxes: Tensor) -> None:
        """Add a batch."""
        if self.collects:
            self.scores.add(detections, boxes)

    def compute(self) -> Tensor:
        """Return the figure of all batches.

        Raises:
            ValueError: no image has a box that it is about.
        """
        figure = self.scores.figure(self.name)
        if figure == _UNDEFINED:
            raise ValueError("no image has a box that it counts")
        return torch.tensor(figure, dtype=torch.float64)

    def reset(self) -> None:
        """Forget the batches."""
        if self.collects:
            self.scores.forget()
