"""Keys of a source on how its recordings are read: sample rate, length."""

from typing import Annotated

from pydantic import Field

from finetune.config.base import Node

PLAIN_RATE = 16_000


class AudioKeys(Node):
    """How a source's recordings are read."""

    sample_rate: Annotated[int, Field(ge=1000, le=384_000)] = PLAIN_RATE
    """Numbers a second that every recording is resampled to."""
    seconds: Annotated[float, Field(ge=0.001, le=36_000)] | None = None
    """Length of every recording: longer ones are cut, shorter ones end in silence. If left out, all must be of one length."""
