"""Images of different sizes: whether what the frozen layers see of one depends on its batch."""

from collections.abc import Collection

from torch import nn

from finetune.data.batches import Samples
from finetune.models.detectors import Detector

_REMEDY = "{type: Resize, size: [H, W], with: [TARGET]} brings all to one size"


def why_company_decides(model: nn.Module, splits: Collection[Samples]) -> str | None:
    """Return why a sample would have other rows in other company; None if it has not.

    A batch of images is as large as its largest one, so frozen layers see a smaller one with more
    padding than alone. Two small trial batches need not show that.

    Args:
        model: The network.
        splits: The samples of all parts.
    """
    known = [samples.image_sizes for samples in splits]
    if any(sizes is None for sizes in known):
        return (
            "not stored, a transform makes images of sizes that are not known beforehand, and a "
            f"batch pads each to its largest one; {_REMEDY}"
        )
    sizes = sorted({size for found in known for size in found or ()})
    detectors = [one for one in model.modules() if isinstance(one, Detector)]
    if len(sizes) < 2:
        return None
    first = [one.size_seen(sizes[0]) for one in detectors]
    for size in sizes[1:]:
        # Where a network brings them all to one size, no image makes another one larger.
        if not first or [one.size_seen(size) for one in detectors] != first:
            (high, wide), (height, width) = sizes[0], size
            return (
                f"not stored, a batch pads images to its largest one, and they differ in size "
                f"({high} x {wide}, {height} x {width}): a sample has other outputs in other "
                f"company; {_REMEDY}"
            )
    return None
