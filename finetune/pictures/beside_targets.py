"""Draw numbers over others that they should equal or exceed: predictions over their targets.

Letters: N samples.
"""

import numpy as np

from finetune.pictures.chart import Axis, Frame
from finetune.pictures.drawing import LINE, Dot, Label, Path, Picture, Shape, fitting

_SIDE, _LEFT, _MARGIN, _MOST_DOTS = 300, 80, 10, 2000


def draw_beside_targets(
    predicted: np.ndarray,
    targets: np.ndarray,
    name: str = "",
    axes: tuple[str, str] = ("predicted", "target"),
    remark: str = "",
) -> Picture:
    """Draw a dot for each sample; on the line, both numbers are equal.

    Args:
        predicted: `(N,)`; samples where it is not finite are counted and not drawn.
        targets: `(N,)`.
        name: What is predicted.
        axes: What the vertical axis shows, and the horizontal one.
        remark: A line below the picture, on samples that are not among these.
    """
    finite = np.isfinite(predicted) & np.isfinite(targets)
    said, so = predicted[finite], targets[finite]
    # One range for both axes: else a network that always says the mean would look good.
    axis = Axis.over([*_ends(said), *_ends(so)], _SIDE)
    frame = Frame(_LEFT, _MARGIN + 2 * LINE, axis, axis)
    ends = [(frame.x(value), frame.y(value)) for value in (axis.low, axis.high)]
    heading = fitting(name or "predictions", _LEFT + _SIDE)
    shapes: list[Shape] = [
        Label(_MARGIN, _MARGIN, heading),
        Label(_MARGIN, _MARGIN + LINE, fitting(axes[0], _LEFT + _SIDE), "muted"),
        *frame.grid(),
        Path(ends, "muted", 2),
    ]
    # Evenly spaced among the samples, so that none is preferred.
    places = np.linspace(0, len(so) - 1, _MOST_DOTS) if len(so) else np.zeros(0)
    some = np.unique(places.astype(int)).tolist()
    shapes += [Dot(frame.x(float(so[n])), frame.y(float(said[n])), 3, "first") for n in some]
    lost = len(predicted) - len(said)
    notes = [f"{len(some)} of {len(so)} samples drawn"] if len(some) < len(so) else []
    notes += [f"{lost} of {len(predicted)} predictions are not finite"] if lost else []
    notes += [fitting(remark, _LEFT + _SIDE)] if remark else []
    shapes.append(Label(frame.right, frame.bottom + LINE, axes[1], "muted", "right"))
    y = frame.bottom + 2 * LINE
    shapes += [Label(_MARGIN, y + LINE * n, note, "muted") for n, note in enumerate(notes)]
    height = round(y + LINE * len(notes) + _MARGIN)
    both = "Predictions beside targets" if axes[1] == "target" else " beside ".join(axes)
    title = f"{both} of {len(so)} samples"
    return Picture(_LEFT + _SIDE + 30, height, shapes, title)


def _ends(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())] if len(values) else []
