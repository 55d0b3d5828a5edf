"""Real samples of a run with the predictor's outputs, and how far other outputs are from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.activations.batch_shapes import mask_of
from finetune.config.task_keys import SpanTask, TokenClassificationTask
from finetune.data.audio import Audio
from finetune.data.images import Images
from finetune.errors import FinetuneError
from finetune.predict import Predictor
from finetune.train.build import located
from finetune.train.run_data import open_raw

TOLERANCE = 1e-5
"""Largest accepted difference of an output, relative to the largest output of its sample or to 1.

Single outputs are no measure: the logits of EfficientNet in float32 are up to 2e-5 from those in
float64 where the largest of a sample is 9, and another library rounds otherwise."""
MOST_AT_ONCE = 32
"""Samples of one pass of a check."""

Outputs = dict[str, Tensor]
"""Outputs of a network by name."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A few samples: raw, as the network takes them, and what the predictor's network gives."""

    rows: Mapping[str, Sequence[Any]]
    inputs: dict[str, Tensor]
    outputs: Outputs
    mask: Tensor | None = None
    """Attention mask `(B, T)` of a task that reads an output of each token, and none of padding."""


def real_passes(predictor: Predictor, count: int) -> list[Pass]:
    """Run the predictor's network on the first samples of the run's own data.

    They are of the test part, else of the validation part, else of the training part. The first
    sample is a pass of its own, since some networks treat a batch of one differently.

    Args:
        predictor: The predictor.
        count: Number of samples.

    Raises:
        FinetuneError: the run's data cannot be read.
    """
    run = predictor.run
    with located(run.config):
        data = open_raw(run.config, run.preprocessing, None)
        part = data.test or data.validation or data.train
        number = min(count, len(part.table))
        begins = range(1, number, MOST_AT_ONCE)
        spans = [range(1), *(range(a, min(a + MOST_AT_ONCE, number)) for a in begins)]
        return [_passed(predictor, part.table.columns, span) for span in spans]


def _passed(predictor: Predictor, columns: Mapping[str, Any], span: range) -> Pass:
    """Return the pass of some samples."""
    run = predictor.run
    rows = {name: [_raw(columns[name], place) for place in span] for name in run.facts.inputs}
    samples = predictor.preparing.samples(rows)
    inputs = samples.fetch(torch.arange(len(span))).to(run.device).inputs
    with torch.inference_mode():
        outputs = predictor.model(**inputs)
    # Clones: what inference mode has made cannot be traced.
    copies = {n: t.clone() for n, t in inputs.items()}
    of_tokens = isinstance(run.config.task, TokenClassificationTask | SpanTask)
    mask = mask_of(copies) if of_tokens else None
    return Pass(rows, copies, named_outputs(outputs), mask)


def _raw(column: Any, place: int) -> Any:
    """Return a sample of a column in the form in which a predictor takes it."""
    # A waveform that was read does not tell its rate, so a predictor refuses it. Of images, what
    # other libraries make of the file is compared too.
    return column.raw(place) if isinstance(column, Audio | Images) else column[place]


def named_outputs(outputs: Any) -> Outputs:
    """Return the outputs of a network by name: `output`, or a name for each of several.

    Raises:
        FinetuneError: they are no tensors.
    """
    match outputs:
        case Tensor():
            named = {"output": outputs}
        case Mapping():
            named = {str(name): value for name, value in outputs.items()}
        case list() | tuple():
            named = {f"output_{number}": value for number, value in enumerate(outputs)}
        case _:
            named = {"output": outputs}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise FinetuneError(
                f"the network's {name} is no tensor, but {type(value).__name__}",
                hint="--format safetensors holds the weights of any network",
            )
    return named


def largest_difference(passes: Sequence[Pass], run: Callable[[Pass], Outputs]) -> float:
    """Return how far the outputs of `run` are from the predictor's, relative as `TOLERANCE`.

    Infinite where shapes, names or the places of NaN differ. Outputs of padding, which no task
    reads, are not compared.
    """
    return max(_difference(run(one), one) for one in passes)


def _difference(found: Outputs, one: Pass) -> float:
    """Return the largest difference between the outputs of one pass."""
    wanted = one.outputs
    if found.keys() != wanted.keys():
        return float("inf")
    largest = 0.0
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return float("inf")
        # In float64, so that the difference itself is not rounded.
        own, other = (_flat(each.detach().double(), one.mask) for each in (found[name], value))
        if not torch.equal(own.isfinite(), other.isfinite()):
            return float("inf")
        finite = other.isfinite()
        apart = torch.where(finite, own - other, 0.0).abs()
        size = torch.where(finite, other, 0.0).abs().amax(dim=1, keepdim=True)
        largest = max(largest, float((apart / size.clamp(min=1.0)).max()))
    return largest


def _flat(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return outputs `(B, ...)` as `(B, N)`; with a mask `(B, T)`, those of padding are 0."""
    if mask is not None and values.shape[:2] == mask.shape:
        padding = (mask == 0).reshape(*mask.shape, *[1] * (values.ndim - 2))
        values = values.masked_fill(padding, 0.0)
    return values.reshape(len(values), -1)
