"""Detection: boxes with a class each, by a network that computes its own losses.

Such a network gives in training an object with `losses(boxes)`, and in evaluation detections. So
there is no loss in evaluation: metrics say how good the network is.

Letters: B images, D detections of an image, K boxes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from finetune.config.task_keys import DetectionTask
from finetune.data.batches import Batch
from finetune.models.detectors import NO_BOX, sizes_of
from finetune.tasks.box_metrics import box_measures
from finetune.tasks.losses import against_target
from finetune.tasks.records import Asked
from finetune.tasks.task import Task, add_up
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import UnfitOutputsError, misfit
from finetune.tasks.weighted_loss import WeightedLoss

_HINT = "the last layer is a detector: {type: torchvision, architecture: ..., output: boxes}"


@runtime_checkable
class HasLosses(Protocol):
    """What a network gives in training that computes its own losses."""

    def losses(self, boxes: Tensor) -> dict[str, Tensor]:
        """Return the losses by name, `()` each, for boxes `(B, K, 5)`."""
        ...


@dataclass(frozen=True, slots=True)
class BoxRecord:
    """The boxes that are predicted for one image, the most probable first."""

    boxes: tuple[tuple[float, ...], ...]
    """x, y, width and height of each, in pixels of the image as it was handed in."""
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    def row(self) -> dict[str, Any]:
        """Return the boxes in the form in which they are learnt."""
        each = zip(self.boxes, self.labels, self.probabilities, strict=True)
        found = [
            {"bbox": list(box), "label": label, "probability": probability}
            for box, label, probability in each
        ]
        return {"objects": found}


def detection(config: DetectionTask, facts: TaskFacts) -> Task:
    """Build the task."""
    return Task(
        # A mean over anchors or boxes of all images, and which of them count is drawn among them:
        # the mean of a window is not the mean of its parts.
        (
            WeightedLoss(
                "detector", 1.0, against_target(_losses), whole_window=True, takes_shares=False
            ),
        ),
        box_measures(config.metrics, detections_of),
        partial(_read, facts.names, config.threshold),
        has_evaluation_loss=False,
    )


def _losses(outputs: Any, boxes: Tensor) -> Tensor:
    """Return the sum of the losses that a network computes itself, `()`."""
    if not isinstance(outputs, HasLosses):
        raise UnfitOutputsError("a network that computes its own losses is needed", _HINT)
    return add_up([*outputs.losses(boxes).values()])


def detections_of(outputs: Any) -> Tensor:
    """Return detections `(B, D, 6)`: x1, y1, x2, y2, probability, number of the class.

    Raises:
        ValueError: the outputs are something else.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or outputs.shape[2] != 6:
        raise UnfitOutputsError("boxes of a detector (B, D, 6) are needed", _HINT)
    return outputs


def _read(
    classes: Sequence[str], threshold: float, outputs: Any, asked: Asked | None = None
) -> list[BoxRecord]:
    """Return the boxes of each image that are as probable as the threshold."""
    try:
        found = detections_of(outputs).detach().float().cpu()
    except ValueError as error:
        raise misfit("prediction", outputs, None, error) from error
    seen = None if asked is None else _sizes_seen(asked.batch)
    read = []
    for number, rows in enumerate(found):
        # Images have different numbers of detections, so the batch is padded with rows of `NO_BOX`.
        there = rows[(rows[:, 5] != NO_BOX) & (rows[:, 4] >= threshold)]
        size = None if asked is None else asked.size(number)
        high, wide = (1.0, 1.0) if size is None or seen is None else _scale(size, seen[number])
        corners = there[:, :4] * there.new_tensor([wide, high, wide, high])
        corners[:, 2:] -= corners[:, :2]
        read.append(
            BoxRecord(
                tuple(map(tuple, corners.tolist())),
                tuple(classes[int(label)] for label in there[:, 5].tolist()),
                tuple(there[:, 4].tolist()),
            )
        )
    return read


def _sizes_seen(batch: Batch) -> list[tuple[int, int]] | None:
    """Return height and width of each image that the network takes; None without any."""
    images = next((values for values in batch.inputs.values() if values.ndim == 4), None)
    return None if images is None else sizes_of(images)


def _scale(size: tuple[int, int], seen: tuple[int, int]) -> tuple[float, float]:
    """Return by how much an image is higher and wider than what the network saw of it."""
    return size[0] / seen[0], size[1] / seen[1]
