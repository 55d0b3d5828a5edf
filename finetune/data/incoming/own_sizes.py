"""Sizes of images as they were handed in, before any transform."""

from collections.abc import Mapping
from typing import Any

from finetune.config.data import DataConfig
from finetune.data.column_kinds import column_of
from finetune.data.images import Images
from finetune.data.opening import DataFacts
from finetune.data.readers.row_places import THE_INPUT
from finetune.data.table import Numbers
from finetune.data.targets.loss_columns import changes_what_is_seen


def own_size(
    sample: Mapping[str, Any], facts: DataFacts, config: DataConfig
) -> tuple[int, int] | None:
    """Return height and width of the first image of a sample, upright.

    None without an image, and where evaluation cuts or pads images: a prediction for each pixel is
    then about what the network sees.

    Args:
        sample: Raw values by column.
        facts: Facts of the training data.
        config: `data:` of the config.

    Raises:
        DataError: it is no image.
    """
    kinds = {name: facts.kinds[name] for name in facts.inputs}
    name = next((name for name, kind in kinds.items() if "image" in kind), None)
    if name is None or changes_what_is_seen(config):
        return None
    source = config.source or config.train
    column = column_of(name, [sample[name]], kinds[name], THE_INPUT, source)
    if isinstance(column, Images):
        header = column.header(0)
        # A header has the size before EXIF turns the image.
        width, height = header.size[::-1] if header.lies else header.size
        return height, width
    assert isinstance(column, Numbers)  # the one other form that images have
    height, width = column.values.shape[-2:]
    return height, width
