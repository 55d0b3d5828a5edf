"""`prefix:` whether the frozen beginning of the network runs once per sample, or every time."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.config.base import Node
from finetune.config.bounds import Gigabytes


class PrefixConfig(Node):
    """What frozen modules give is stored on the first visit of a sample and used ever after."""

    use: Literal["auto", "off"] = "auto"
    """`auto` stores where it is exact and pays, and says why where it does not; tokens of texts are stored too. `off` runs everything every time."""
    views: int | None = Field(default=None, gt=0, le=10_000)
    """How many draws of the random transforms each sample has, all of them stored: epochs take turns. A new draw in every epoch, of which nothing is stored, if left out."""
    memory_gb: Gigabytes = 2.0
    """Stores up to this size, those of all splits together, are kept in memory, larger ones read from disk."""
    disk_gb: Gigabytes = 20.0
    """Most that all stores together may take on disk; those not used for longest make room."""
    store_dtype: Literal["float16", "bfloat16"] | None = None
    """Number format of stored values, half the size; training is then no longer bit-identical to one without a store. As computed if left out."""


def _word_is_the_use(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Prefix = Annotated[PrefixConfig, BeforeValidator(_word_is_the_use)]
"""`off`, `auto`, or the settings."""
