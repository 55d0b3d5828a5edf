"""`cache:` the activation cache, which keeps what the frozen prefix gives for each sample."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.config.base import Node
from finetune.config.bounds import Gigabytes


class CacheConfig(Node):
    """The activation cache: outputs of the frozen prefix are stored at a sample's first visit and read at later ones."""

    use: Literal["auto", "off"] = "auto"
    """`auto` caches where that is exact and saves time, and says why where it does not; it keeps the token ids of texts too. `off` caches nothing."""
    views: int | None = Field(default=None, gt=0, le=10_000)
    """Number of random augmentations of each sample. All are cached, and epochs take turns. If left out, every epoch draws a new one, and nothing behind a random transform is cached."""
    memory_gb: Gigabytes = 2.0
    """Rows of all splits together are kept in memory up to this size; larger caches are read from disk."""
    disk_gb: Gigabytes = 20.0
    """Upper limit of the cache on disk, over all runs. The least recently used stores are removed first."""
    store_dtype: Literal["float16", "bfloat16"] | None = None
    """Number format of cached values: half the size, but training is then not bit-identical to training without the cache. If left out, values are stored as computed."""


def _word_is_the_use(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Cache = Annotated[CacheConfig, BeforeValidator(_word_is_the_use)]
"""`off`, `auto`, or the settings."""
