"""`cache:` settings of the activation cache, which stores outputs of the frozen prefix per sample."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.config.base import Node
from finetune.config.bounds import Gigabytes


class CacheConfig(Node):
    """The activation cache: outputs of the frozen prefix are stored at a sample's first visit and read at later ones."""

    # Every default but `store_dtype` keeps results bit-identical to a run without the cache.
    use: Literal["auto", "off"] = "auto"
    """`auto` caches where that is exact and saves time, and reports why where it does not; it stores the token ids of texts too. `predict` and `eval` use the rows of samples that it knows. `off` caches and uses nothing."""
    views: int | None = Field(default=None, gt=0, le=10_000)
    """Number of random augmentations per sample. All are cached, and epochs take turns. If left out, every epoch draws a new one, and nothing behind a random transform is cached."""
    disk_gb: Gigabytes = 20.0
    """Upper limit of the cache on disk, over all runs. The least recently used stores are removed first. Where the disk cannot be used, rows are kept in memory, up to this size and at most 2 GiB."""
    store_dtype: Literal["float16", "bfloat16"] | None = None
    """Number format of cached values: half the size, but training is then not bit-identical to training without the cache. If left out, values are stored as computed."""


def _word_is_the_use(value: Any) -> Any:
    """Turn the short form `off` or `auto` into a mapping."""
    return {"use": value} if isinstance(value, str) else value


Cache = Annotated[CacheConfig, BeforeValidator(_word_is_the_use)]
"""The settings as a mapping, or one of the words `off` and `auto`."""
