"""Lines about fitted steps: what they have kept of the training samples, what they met since."""

from collections.abc import Sequence
from typing import assert_never

from finetune.data.short_values import in_short
from finetune.data.steps.fitted_steps import FAR, FittedStep
from finetune.data.steps.learnt import Figures, Filling, Known, Limits, Scale
from finetune.data.steps.transforms import PlannedStep
from finetune.data.targets.labels import folded
from finetune.errors import named

_COMPARED = 10_000
"""Most categories whose spellings are compared."""
_FEW = 5
"""Fewer numbers may lie anywhere."""
_SHOWN = 6
"""Most columns, and most categories, that a line names."""


def fitted_of(*plans: Sequence[PlannedStep]) -> list[FittedStep]:
    """Return each fitted step of some plans once."""
    # By identity: evaluation shares steps with training, and each is told once.
    steps = {id(each.step): each.step for plan in plans for each in plan}
    return [step for step in steps.values() if isinstance(step, FittedStep)]


def notes_on_figures(steps: Sequence[PlannedStep], count: int | None) -> list[str]:
    """Return lines on what fitted steps have kept of the training samples.

    Args:
        steps: The steps of training.
        count: Number of training samples; None for a run that has kept them from its beginning.
    """
    return [line for step in fitted_of(steps) for line in _on_figures(step, count)]


def notes_on_met(*plans: Sequence[PlannedStep]) -> list[str]:
    """Return lines on empty, unknown and far cells that fitted steps met."""
    return [line for step in fitted_of(*plans) for line in _on_met(step)]


def _on_figures(step: FittedStep, count: int | None) -> list[str]:
    """Return lines on what one step has learnt, and on columns that are constant."""
    told = [f"{name} {_told(figures)}" for name, figures in (step.figures or {}).items()]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    since = "as the run began" if count is None else f"fitted on {count:,} training samples"
    lines = [f"{step.node.type}, {since}: {'; '.join(told[:_SHOWN])}{more}"]
    for name, one in (step.figures or {}).items():
        lines += _on_spelling(name, one) if isinstance(one, Known) else []
    constant = [n for n, one in (step.figures or {}).items() if _is_constant(one)]
    if constant:
        word = "column is" if len(constant) == 1 else "columns are"
        lines.append(f"{word} constant in the training part and tell nothing: {named(constant)}")
    return lines


def _on_spelling(column: str, known: Known) -> list[str]:
    """Return a line on categories that differ in case and blanks alone; or nothing."""
    spellings: dict[str, list[str]] = {}
    for name in known.names[:_COMPARED]:
        spellings.setdefault(folded(name), []).append(name)
    alike = [group for group in spellings.values() if len(group) > 1]
    if not alike:
        return []
    return [
        f"column {column!r}: {sum(map(len, alike)):,} of {len(known.names):,} categories are equal "
        f"to others but for case and blanks, such as {named(alike[0])}: each is one of its own"
    ]


def _on_met(step: FittedStep) -> list[str]:
    """Return lines on empty and unknown cells, and numbers of another size, that one step met."""
    lines = []
    for name, met in step.met.items():
        if met.num_empty:
            is_word = "cell is" if met.num_cells == 1 else "cells are"
            value = _told((step.figures or {})[name])
            lines.append(
                f"column {name!r}: {met.num_empty:,} of {met.num_cells:,} {is_word} empty, filled "
                f"{value}"
            )
        # A few of them are outliers; nearly all of them are something else.
        if met.num_cells >= _FEW and met.num_far * 2 > met.num_cells:
            usual = _told((step.figures or {})[name])
            lines.append(
                f"column {name!r}: {met.num_far:,} of {met.num_cells:,} numbers are more than "
                f"{FAR} standard deviations from those of training {usual}: are both in one unit, "
                "and scaled alike?"
            )
        if met.num_unknown:
            code = "0" if step.learnt.makes_positions else "a vector of zeros"
            lines.append(
                f"column {name!r}: {met.num_unknown:,} of {met.num_cells:,} cells hold a category "
                f"unknown in training, such as {met.unknown}; it becomes {code}"
            )
    return lines


def _told(figures: Figures) -> str:
    """Return figures in words."""
    match figures:
        case Scale(mean=mean, deviation=deviation):
            return f"(mean {_in_short(mean)}, deviation {_in_short(deviation)})"
        case Filling(value=value):
            return f"with {in_short(value) if isinstance(value, str) else _in_short(value)}"
        case Limits(low=low, high=high):
            ends = (None if end is None else _in_short(end) for end in (low, high))
            return f"({' to '.join('any' if end is None else end for end in ends)})"
        case Known(names=names):
            more = ", ..." if len(names) > _SHOWN else ""
            return f"({len(names)}: {', '.join(map(in_short, names[:_SHOWN]))}{more})"
        case _:
            assert_never(figures)


def _in_short(numbers: Sequence[float]) -> str:
    """Return the first few numbers as text."""
    more = ", ..." if len(numbers) > 3 else ""
    return ", ".join(f"{number:.4g}" for number in numbers[:3]) + more


def _is_constant(figures: Figures) -> bool:
    """Tell whether a column has the same value in all training samples."""
    match figures:
        case Scale(deviation=deviation):
            # Exactly 0: the step compares the values of such a column, and computes no difference.
            return not any(deviation)
        case Known(names=names):
            return len(names) == 1
    return False
