"""Draw how far the weights of each block have moved."""

from collections.abc import Mapping

from finetune.pictures.drawing import LINE, Box, Label, Picture, Shape, fitting, text_width

MOST_SHOWN = 40
_MARGIN, _MOST_LABEL, _BAR = 10, 220, 220


def draw_movement(moved: Mapping[str, float]) -> Picture:
    """Draw a bar for each block: ‖w - w₀‖ / ‖w₀‖ over its weights, w₀ before training.

    Args:
        moved: The share for each block, from the input on; 0 for one that was always frozen.
    """
    rows = list(moved.items())
    shown = rows[-MOST_SHOWN:]
    labels = [fitting(name, _MOST_LABEL, keeps_end=True) for name, _ in shown]
    left = 2 * _MARGIN + max(map(text_width, labels), default=0)
    # A block that has become infinite must not shrink the bars of all others to nothing.
    finite = [value for _, value in shown if value == value and value != float("inf")]
    most = max(finite, default=0.0) or 1.0
    top = _MARGIN + 2 * LINE
    shapes: list[Shape] = [Label(_MARGIN, _MARGIN, "how far weights moved, relative to their norm")]
    if len(shown) < len(rows):
        text = f"the last {len(shown)} of {len(rows)} blocks"
        shapes.append(Label(_MARGIN, _MARGIN + LINE, text, "muted"))
    for row, ((_, value), label) in enumerate(zip(shown, labels, strict=True)):
        y = top + LINE * row
        # A block that has not moved has no bar at all: that is what being frozen means.
        shapes.append(Label(_MARGIN, y, label))
        if value > 0:
            share = min(1.0, value / most)
            shapes.append(Box(left, y + 4, max(1.0, _BAR * share), 14, "trained"))
        words = "not moved" if value == 0 else f"{value:.2g}"
        x = left + (_BAR * min(1.0, value / most) if value > 0 else 0) + 6
        shapes.append(Label(x, y, words, "muted"))
    width = left + _BAR + 90
    title = "How far the weights of each block have moved"
    return Picture(round(width), round(top + LINE * len(shown) + _MARGIN), shapes, title)
