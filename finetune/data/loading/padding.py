"""Bring images of different sizes into one batch, for networks that see where each one ends.

Letters: B samples of a batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from finetune.data.gaps import refuse_gaps
from finetune.data.samples import Sample
from finetune.data.steps.pipeline import as_value
from finetune.data.table import Numbers
from finetune.models.detectors import OUTSIDE

_IMAGE_AXES = 3


def padded_images(samples: Sequence[Sample], place: Callable[[int], str]) -> dict[str, Tensor]:
    """Return the columns of images that differ in size, as batches `(B, C, H, W)`.

    H and W are the largest ones. What lies outside of an image, below it and to the right, is
    `OUTSIDE`. Images of bytes become 0..1.

    Args:
        samples: At least one.
        place: Names a sample by its position, for messages.

    Raises:
        DataError: an image holds NaN.
    """
    found = {}
    for name in samples[0]:
        values = [as_value(sample.get(name)) for sample in samples]
        images = [one for one in values if isinstance(one, Tensor) and one.ndim == _IMAGE_AXES]
        depths, sizes = {len(one) for one in images}, {tuple(one.shape[1:]) for one in images}
        # Anything else is left to what makes batches of other samples, and refuses it.
        if len(images) == len(samples) and len(depths) == 1 < len(sizes):
            found[name] = _padded(name, images, place)
    return found


def _padded(name: str, images: Sequence[Tensor], place: Callable[[int], str]) -> Tensor:
    """Return images of one depth as a batch."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.full((len(images), len(images[0]), height, width), OUTSIDE)
    for position, image in enumerate(images):
        refuse_gaps(name, Numbers(image[None]), partial(_named, place, position))
        values = image.float()
        if image.dtype == torch.uint8:
            # As `finished_batch` does it: an image has the same bits in every batch.
            values = values.div_(torch.tensor(255.0))
        batch[position, :, : image.shape[1], : image.shape[2]] = values
    return batch


def _named(place: Callable[[int], str], position: int, _: int) -> str:
    """Return the name of a sample that is looked at as a column of one row."""
    return place(position)
