"""Note on classes that the masks of a part lack, by reading some masks of each part."""

from collections.abc import Mapping

import torch

from finetune.config.run import RunConfig
from finetune.config.source_keys import ArraysSource
from finetune.config.task_keys import SegmentationTask
from finetune.counting import Counting
from finetune.data.batches import Samples, sample_order
from finetune.data.targets.class_counts import Counted, class_counts, notes_on_classes

_LOOKED_AT = 200
"""Number of masks that are read of each part, drawn by seed."""


def classes_of_pixels(
    config: RunConfig, parts: Mapping[str, Samples], classes: tuple[str, ...] | None
) -> list[str]:
    """Return notes on the classes that the pixels of each part have, for masks in files.

    They are counted as the loss gets them, after all transforms. Masks in arrays are counted when
    the data is opened.

    Args:
        config: The run config.
        parts: The samples by part, or some of them.
        classes: Names of the classes.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    are_arrays = isinstance(config.data.source or config.data.train, ArraysSource)
    if not isinstance(config.task, SegmentationTask) or classes is None or are_arrays:
        return []
    counted = {
        part: _counted(samples, len(classes), config.seed) for part, samples in parts.items()
    }
    few = {
        part: f"{_LOOKED_AT:,} {part} masks looked at"
        for part, samples in parts.items()
        if len(samples) > _LOOKED_AT
    }
    return notes_on_classes(counted, classes, config.task, looked_at=few)


def _counted(samples: Samples, num_classes: int, seed: int) -> Counted:
    """Return the number of pixels of each class in some masks."""
    # Not the first ones: where data is sorted, a class may come only later.
    rows = sample_order(len(samples), seed, 0)[:_LOOKED_AT]
    counts = torch.zeros(num_classes, dtype=torch.int64)
    counting = Counting("reading masks", "masks")
    for done, row in enumerate(rows.split(1)):
        counting.at(done, done / len(rows))
        target = samples.fetch(row).without_skipped().target
        if target is not None:
            counts += class_counts(target[target >= 0].flatten(), num_classes)
    return Counted(counts, int(counts.sum()), are_labels=False)
