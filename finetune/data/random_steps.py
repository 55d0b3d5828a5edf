"""Transforms that are random run in training alone: what evaluation and prediction see without."""

from collections.abc import Sequence
from typing import Any

import torch

from finetune.data.batches import Samples
from finetune.data.pipeline import UnequalShapesError, run_steps
from finetune.data.samples import Columns
from finetune.data.table import Table
from finetune.data.tokens import TokenStore
from finetune.data.transforms import PlannedStep, Step
from finetune.data.vision import Vision
from finetune.errors import DataError, named


def run_other_steps(
    table: Table,
    steps: Sequence[PlannedStep],
    left_out: Sequence[PlannedStep],
    tokens: TokenStore | None = None,
) -> tuple[Columns, list[Step]]:
    """Do what evaluation and prediction do to samples; return what is left for every fetch.

    Args:
        table: The raw samples.
        steps: The steps of evaluation.
        left_out: The steps of training that are left out as they are random.
        tokens: Where tokens are kept from run to run.

    Raises:
        DataError: a step fails, or samples differ in shape without those that are left out.
    """
    try:
        return run_steps(table, steps, tokens)
    except UnequalShapesError as error:
        if not left_out:
            raise
        raise DataError(
            f"{error.message}: evaluation and prediction do without {_names(left_out)}, which "
            f"{_is(left_out)} random",
            hint=_remedy(left_out),
            key=("data", "transforms"),
        ) from error


def note_on_other_shapes(
    samples: Samples,
    table: Table,
    steps: Sequence[PlannedStep],
    left_out: Sequence[PlannedStep],
) -> list[str]:
    """Tell where evaluation and prediction see samples of another shape than training does.

    Judged by the first sample of training.

    Args:
        samples: Those of training, as they are fetched.
        table: The same, raw.
        steps: The steps of evaluation.
        left_out: The steps of training that are left out as they are random.
    """
    if not left_out:
        return []
    first = table.take(torch.tensor([0]))
    columns, later = run_steps(first, steps)
    other = Samples(columns, None, later=later).specs
    for name, spec in samples.specs.items():
        if name in other and other[name].shape != spec.shape:
            return [
                f"column {name!r}: training takes samples of {spec.shape}, evaluation and "
                f"prediction of {other[name].shape}, without {_names(left_out)}, which "
                f"{_is(left_out)} random; {_remedy(left_out)}"
            ]
    return []


def _remedy(left_out: Sequence[PlannedStep]) -> str:
    """Show the key, with the size that the last of the steps with one gives."""
    sizes = [_size(step.step.transform) for step in left_out if isinstance(step.step, Vision)]
    known = [size for size in sizes if size is not None]
    size = known[-1] if known else [224, 224]
    return (
        f"data.evaluation_transforms: [{{type: Resize, size: {size}}}] gives them one shape of "
        "their own"
    )


def _size(transform: Any) -> list[int] | None:
    """Return height and width that a transform of torchvision gives, where it names both."""
    size = getattr(transform, "size", None)
    return [int(side) for side in size] if isinstance(size, list | tuple) and size else None


def _names(left_out: Sequence[PlannedStep]) -> str:
    steps = (each.step for each in left_out)
    return named(s.name if isinstance(s, Vision) else "a transform of your own" for s in steps)


def _is(left_out: Sequence[PlannedStep]) -> str:
    return "is" if len(left_out) == 1 else "are"
