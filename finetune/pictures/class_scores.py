"""Draw precision and recall of each class or label, the worst first.

Letters: C classes.
"""

from collections.abc import Sequence

import numpy as np

from finetune.pictures.drawing import LINE, Box, Label, Picture, Shape, fitting, text_width

MOST_SHOWN = 25
"""Classes that are drawn; of more, the worst ones."""
_MARGIN, _MOST_LABEL, _BAR, _ROW = 10, 160, 200, 32


def draw_class_scores(
    precision: np.ndarray, recall: np.ndarray, support: np.ndarray, classes: Sequence[str]
) -> Picture:
    """Draw two bars for each class, sorted by the smaller of the two.

    Args:
        precision: Share of the samples predicted as a class that are of it, `(C,)`; NaN where none
            is predicted.
        recall: Share of the samples of a class that are predicted as it, `(C,)`; NaN without any.
        support: Samples of each class, `(C,)`.
        classes: Names of the classes.
    """
    # A class that has samples and is never predicted is worst: its precision does not exist.
    # A class without samples comes last: no score is above 1.
    worst = np.where(support > 0, np.nan_to_num(np.minimum(precision, recall)), 2.0)
    order = np.argsort(worst, kind="stable")
    shown = [int(number) for number in order[:MOST_SHOWN]]
    labels = [fitting(classes[number], _MOST_LABEL) for number in shown]
    left = 2 * _MARGIN + max(map(text_width, labels), default=0)
    top = _MARGIN + 2 * LINE
    counts = [f"{int(support[number])} samples" for number in shown]
    right = max(map(text_width, counts), default=0)
    width = left + _BAR + _MARGIN + right + _MARGIN
    width = max(width, 400)
    shapes = _heading(len(classes))
    for share in (0, 0.25, 0.5, 0.75, 1):
        shapes.append(Box(left + _BAR * share, top, 1, _ROW * len(shown), "grid"))
    for row, (number, label) in enumerate(zip(shown, labels, strict=True)):
        y = top + _ROW * row
        shapes.append(Label(_MARGIN, y + 5, label))
        shapes += _bar(left, y + 4, float(precision[number]), "first")
        shapes += _bar(left, y + 16, float(recall[number]), "second")
        shapes.append(Label(left + _BAR + _MARGIN, y + 5, counts[row], "muted"))
    bottom = top + _ROW * len(shown)
    for share, text in ((0, "0"), (0.5, "0.5"), (1, "1")):
        shapes.append(Label(left + _BAR * share, bottom + 2, text, "muted", "middle"))
    title = f"Precision and recall of {len(shown)} of {len(classes)} classes, the worst first"
    return Picture(round(width), round(bottom + LINE + _MARGIN), shapes, title)


def scores_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and support `(C,)` of a confusion matrix `(C, C)`.

    Precision is TP / (TP + FP), recall TP / (TP + FN); NaN where the divisor is 0.
    """
    hits = np.diag(counts).astype(np.float64)
    said, support = counts.sum(axis=0), counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / said, hits / support, support


def _heading(count: int) -> list[Shape]:
    """Return the legend, and how many classes are left out."""
    names = (("first", "precision"), ("second", "recall"))
    shapes: list[Shape] = []
    x = float(_MARGIN)
    for colour, name in names:
        shapes += [Box(x, _MARGIN + 4, 14, 12, colour), Label(x + 19, _MARGIN, name)]
        x += 32 + text_width(name)
    if count > MOST_SHOWN:
        text = f"the worst {MOST_SHOWN} of {count}"
        shapes.append(Label(x, _MARGIN, text, "muted"))
    return shapes


def _bar(x: float, y: float, share: float, colour: str) -> list[Shape]:
    """Return the bar of a share; words where it does not exist."""
    if np.isnan(share):
        return [Box(x, y + 4, 6, 2, "muted")]
    # At 0 there is a line still, unlike where no score exists.
    return [Box(x, y, max(1.0, _BAR * share), 10, colour)]
