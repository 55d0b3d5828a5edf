"""Note on parts whose numbers are of another size than those of training.

Letters: N samples, C numbers of a sample.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.config.run import RunConfig
from finetune.config.source_keys import ArraysSource
from finetune.data.batches import Samples, sample_order
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.lints.unscaled_numbers import column_behind

_LOOKED_AT = 1000
"""Number of samples of a part whose numbers are measured, drawn by seed."""
_IMAGES_LOOKED_AT = 64
_IMAGE_AXES = 2
"""Least axes of a sample that is an image, or an array like one."""
_FAR = 10
"""Deviations of training by which a mean or a deviation differs before it is told."""


class _Sizes(NamedTuple):
    """Mean, standard deviation and range of the numbers of a column, `(C,)` each."""

    mean: Tensor
    deviation: Tensor
    least: Tensor
    greatest: Tensor


def unlike_parts(config: RunConfig, parts: Mapping[str, Samples]) -> tuple[Lint, ...]:
    """Return a note on each column of numbers whose size differs much from that of training.

    Such a part is in other units, or was scaled before it was written.

    Args:
        config: The run config.
        parts: The samples by part, or some of them, as the network gets them.
    """
    train = parts["train"]
    data = config.data
    # Files of images are alike: their pixels are 0 to 1.
    has_arrays = any(
        isinstance(one, ArraysSource) for one in (data.train, data.validation, data.test)
    )
    names = [
        name
        for name, spec in train.specs.items()
        if spec.dtype == "float32" and (len(spec.shape) < _IMAGE_AXES or has_arrays)
    ]
    # To fetch texts only to measure what stands beside them would tokenize them.
    if not names or len(parts) < 2 or any(spec.dtype == "int64" for spec in train.specs.values()):
        return ()
    usual = _sizes(train, names, config.seed)
    return tuple(
        lint
        for part, samples in parts.items()
        if part != "train"
        for lint in _compared(part, _sizes(samples, names, config.seed), usual, config)
    )


def _compared(
    part: str, sizes: Mapping[str, _Sizes], usual: Mapping[str, _Sizes], config: RunConfig
) -> Iterator[Lint]:
    """Yield a note for each column of a part that is far from training."""
    for column, here in sizes.items():
        there, (mean, deviation) = usual[column], here[:2]
        far = _far(here, there)
        if float(far.max()) <= _FAR:
            continue
        at = int(far.argmax())
        others = int((far > _FAR).sum()) - 1
        name = column_behind(config, column, at if len(mean) > 1 else None)
        is_in_vector = len(mean) > 1 and name in (None, column)
        what = f"number {at} of {column!r}" if is_in_vector else f"column {name!r}"
        more = f" and {others} more" if others else ""
        yield Lint(
            _key(config, part),
            f"{what}{more} of the {part} part: mean {mean[at]:,.4g} and standard deviation "
            f"{deviation[at]:,.4g}, where training has {there.mean[at]:,.4g} and "
            f"{there.deviation[at]:,.4g}",
            "are both in one unit, and scaled alike?",
        )


def _far(here: _Sizes, there: _Sizes) -> Tensor:
    """Return how far numbers are from those of training, in deviations of these, `(C,)`."""
    away = (here.mean - there.mean).abs().maximum((here.deviation - there.deviation).abs())
    # What never differs in training has no deviation to compare with, but for rounding.
    constant = there.mean.abs().clamp(min=1)
    far = away / torch.where(there.deviation > 1e-6 * constant, there.deviation, constant)
    # A flag that training hardly ever has is in no other unit where it is frequent.
    is_in_range = (here.mean >= there.least) & (here.mean <= there.greatest)
    is_in_range &= here.deviation <= there.greatest - there.least
    # NaN, which other checks tell, is not far from anything.
    return far.masked_fill(is_in_range | far.isnan(), 0.0)


def _key(config: RunConfig, part: str) -> Key:
    """Return the config key of a part's source."""
    is_own = getattr(config.data, part, None) is not None
    return ("data", part) if is_own else ("data", "split")


def _sizes(samples: Samples, names: list[str], seed: int) -> dict[str, _Sizes]:
    """Return the sizes of each column, over some samples drawn by seed."""
    has_images = any(len(samples.specs[name].shape) >= _IMAGE_AXES for name in names)
    most = _IMAGES_LOOKED_AT if has_images else _LOOKED_AT
    batch = samples.fetch(sample_order(len(samples), seed, 0)[:most])
    found = {}
    for name in names:
        values = batch.inputs[name].double()
        # All pixels of images have one unit.
        values = (
            values.reshape(-1, 1) if values.ndim > _IMAGE_AXES else values.reshape(len(batch), -1)
        )
        found[name] = _Sizes(
            values.mean(0), values.std(0, correction=0), values.amin(0), values.amax(0)
        )
    return found
