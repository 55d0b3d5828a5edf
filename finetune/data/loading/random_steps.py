"""Run the steps of evaluation and prediction, where random transforms of training are left out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from finetune.data.batches import Samples
from finetune.data.joined_samples import UnequalShapesError
from finetune.data.loading.ready import samples_from
from finetune.data.steps.augmenting import MaskTokens, SpecAugment
from finetune.data.steps.pipeline import run_steps
from finetune.data.steps.transforms import PlannedStep
from finetune.data.steps.vision import Vision
from finetune.data.table import Table
from finetune.errors import DataError, named


@contextmanager
def naming_left_out(left_out: Sequence[PlannedStep]) -> Iterator[None]:
    """Name the random steps where samples differ in shape without them.

    Args:
        left_out: The steps of training that evaluation and prediction do without.

    Raises:
        DataError: the block raises an `UnequalShapesError`, and steps are left out.
    """
    try:
        yield
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
    *,
    row: int = 0,
) -> list[str]:
    """Return a note if evaluation and prediction see samples of another shape than training.

    Only one training sample is compared.

    Args:
        samples: The training samples as they are fetched.
        table: The same samples before any step.
        steps: The steps of evaluation.
        left_out: Steps of training that are left out because they are random.
        row: Position of the sample.
    """
    # With `evaluation_transforms` in the config, another shape is what the user asked for.
    if not left_out:
        return []
    # One sample: to prepare all of them twice for a note would take as long as the run's start.
    first = table.take(torch.tensor([row]))
    other = samples_from(run_steps(first, steps)).specs
    for name, spec in samples.specs.items():
        if name in other and other[name].shape != spec.shape:
            return [
                f"column {name!r}: training takes samples of {spec.shape}, evaluation and "
                f"prediction of {other[name].shape}, without {_names(left_out)}, which "
                f"{_is(left_out)} random; {_remedy(left_out)}"
            ]
    return []


def _remedy(left_out: Sequence[PlannedStep]) -> str:
    """Return a hint with the config key and the size that the last random step with one gives."""
    sizes = [_size(step.step.transform) for step in left_out if isinstance(step.step, Vision)]
    known = [size for size in sizes if size is not None]
    # Of several, the last one gives the size that training sees.
    size = known[-1] if known else [224, 224]
    return (
        f"data.evaluation_transforms: [{{type: Resize, size: {size}}}] gives them one shape of "
        "their own"
    )


def _size(transform: Any) -> list[int] | None:
    """Return height and width that a transform of torchvision gives; None if it lacks either."""
    size = getattr(transform, "size", None)
    return [int(side) for side in size] if isinstance(size, list | tuple) and size else None


def _names(left_out: Sequence[PlannedStep]) -> str:
    """Return the names of steps as text."""
    steps = (each.step for each in left_out)
    of_own = (Vision, MaskTokens, SpecAugment)
    return named(s.name if isinstance(s, of_own) else "a transform of your own" for s in steps)


def _is(left_out: Sequence[PlannedStep]) -> str:
    """Return the verb that goes with the number of steps."""
    return "is" if len(left_out) == 1 else "are"
