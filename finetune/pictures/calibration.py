"""Draw whether probabilities can be believed: of the samples with 0.8, are 80 % right?

Letters: N samples, K bins.
"""

from typing import NamedTuple

import numpy as np

from finetune.pictures.chart import Axis, Frame
from finetune.pictures.drawing import LINE, Box, Label, Path, Picture, Shape

NUM_BINS = 10
_SIDE, _LEFT, _MARGIN, _COUNTS = 300, 60, 10, 60


class Bins(NamedTuple):
    """Samples grouped by the probability of their prediction, into bins of one width."""

    counts: np.ndarray
    """Samples of each bin, `(K,)`."""
    confidence: np.ndarray
    """Mean probability of each bin, `(K,)`; NaN for an empty one."""
    accuracy: np.ndarray
    """Share of right predictions of each bin, `(K,)`; NaN for an empty one."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean over samples of |accuracy - confidence| of their bin.

        Guo et al. 2017 (arXiv:1706.04599), equation 3.
        """
        if not self.counts.sum():
            return float("nan")
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((gaps * self.counts).sum() / self.counts.sum())


def bins_of(probability: np.ndarray, is_right: np.ndarray) -> Bins:
    """Group samples by the probability of what was predicted.

    Args:
        probability: Of the predicted class, `(N,)`; those that are not finite are left out.
        is_right: Whether the prediction is right, `(N,)` bool.
    """
    finite = np.isfinite(probability)
    probability, is_right = probability[finite], is_right[finite]
    # A probability of 1 belongs to the last bin, not to one behind it.
    place = np.clip((probability * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    counts = np.bincount(place, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        return Bins(
            counts,
            np.bincount(place, probability, NUM_BINS) / counts,
            np.bincount(place, is_right, NUM_BINS) / counts,
        )


def draw_calibration(bins: Bins) -> Picture:
    """Draw the share of right predictions over their probability, with the samples of each bin."""
    axis = Axis(0.0, 1.0, _SIDE)
    # The number at the top of the axis takes half a line, too.
    frame = Frame(_LEFT, _MARGIN + 2.5 * LINE, axis, axis)
    shapes: list[Shape] = [
        Label(_MARGIN, _MARGIN, f"calibration error {bins.error:.3f}"),
        Label(_MARGIN, _MARGIN + LINE, "share of right predictions", "muted"),
        *frame.grid(),
        Path([(frame.x(0), frame.y(0)), (frame.x(1), frame.y(1))], "muted", 2),
    ]
    width = _SIDE / NUM_BINS
    below = frame.bottom + 2 * LINE
    most = max(1, int(bins.counts.max()))
    for place, count in enumerate(bins.counts):
        if not count:
            continue
        x, accuracy = frame.left + width * place, float(bins.accuracy[place])
        shapes.append(Box(x + 2, frame.y(accuracy), width - 4, frame.up.place(accuracy), "first"))
        # What the network said of the bin: the bar should end here.
        shapes.append(Box(x, frame.y(float(bins.confidence[place])) - 1, width, 3, "second"))
        height = max(1.0, _COUNTS * count / most)
        shapes.append(Box(x + 2, below + _COUNTS - height, width - 4, height, "muted"))
    bottom = below + _COUNTS
    shapes += [
        Label(frame.right, frame.bottom + LINE, "probability", "muted", "right"),
        Label(_MARGIN, bottom + 4, f"below: samples, at most {most} in a bin", "muted"),
        Box(_MARGIN, bottom + LINE + 8, 14, 12, "first"),
        Label(_MARGIN + 19, bottom + LINE + 4, "right"),
        Box(_MARGIN + 80, bottom + LINE + 12, 14, 3, "second"),
        Label(_MARGIN + 99, bottom + LINE + 4, "said, where the bar should end"),
    ]
    title = f"Calibration: expected error {bins.error:.3f}"
    return Picture(_LEFT + _SIDE + 30, round(bottom + 2 * LINE + 4 + _MARGIN), shapes, title)
